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
    return float(authentic(Spacing(train), nearest(fake, train)).double().mean())


class Spacing:
    """How far each training point is from the nearest other one; each is found once, when first asked for.

    Args:
        train: Features [M >= 2, d].
    """

    def __init__(self, train: Tensor) -> None:
        self._train = train
        self._found = torch.full((len(train),), torch.nan, dtype=torch.float64, device=train.device)

    def of(self, points: Tensor) -> Tensor:
        """Distances float64 [n] of the points at positions int64 [n].

        Raises:
            ValueError: If M < 2.
        """
        missing = torch.unique(points[self._found[points].isnan()])
        if len(missing):
            self._found[missing] = nearest(self._train[missing], self._train, exclude=missing).distances[:, 0]
        return self._found[points]


def authentic(spacing: Spacing, neighbours: Neighbours) -> Tensor:
    """Which samples are authentic, bool [N].

    Args:
        spacing: Of the training set.
        neighbours: Of the samples in it.

    Raises:
        ValueError: If the training set has fewer than two points.
    """
    distances, points = neighbours.distances[:, 0], neighbours.indices[:, 0]
    # Nothing is closer than a copy: what its original's neighbours are need not be known.
    open_question = distances > 0
    found = torch.zeros_like(open_question)
    found[open_question] = distances[open_question] > spacing.of(points[open_question])
    return found
