"""Authenticity: the share of samples that are not closer to a training image than its own kind is."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.evaluation.metrics.nearest import Neighbours, nearest


def authenticity(train: Tensor, fake: Tensor) -> float:
    """Share of authentic samples, in [0, 1]; 0 for copies of training images.

    A sample is authentic if its nearest training point t has another training point that is strictly closer to t than
    the sample is: Alaa et al. 2022 (arXiv:2102.08921). The paper compares sets of equal size; the expected share
    depends on the size of the training set alone, so any number of samples estimates the same quantity.

    The ceiling is not 1. What fails is a sample that is the nearest neighbour of its nearest neighbour, which befalls
    two thirds of held-out real points on a line and about half of them in many dimensions: read the share beside that
    of held-out images against the same training set.

    Args:
        train: Features [M >= 2, d] of the whole training set: a copy of what is missing passes for authentic.
        fake: Features [N, d].

    Raises:
        ValueError: If shapes do not fit or M < 2.
    """
    return float(authentic(train, nearest(fake, train)).double().mean())


def authentic(train: Tensor, neighbours: Neighbours) -> Tensor:
    """Which samples are authentic, bool [N].

    Args:
        train: Features [M >= 2, d].
        neighbours: Of the samples in `train`.

    Raises:
        ValueError: If M < 2.
    """
    points, which = torch.unique(neighbours.indices[:, 0], return_inverse=True)
    to_other = nearest(train[points], train, exclude=points).distances[:, 0]
    return neighbours.distances[:, 0] > to_other[which]
