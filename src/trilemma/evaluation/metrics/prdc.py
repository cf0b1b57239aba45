"""Precision, recall, density and coverage from k-nearest-neighbour balls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.evaluation.metrics.distances import squared_distances

CHUNK = 1024  # rows of the distance matrix that exist at a time: 80 MB at N = 10,000


@dataclass(frozen=True)
class PRDC:
    """The four numbers; each lies in [0, 1] but density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(real: Tensor, fake: Tensor, *, nearest_k: int = 5) -> PRDC:
    """Compare two sets of features by the balls that reach to each one's k-th nearest neighbour.

    Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991), equation 1. Density and coverage: Naeem et al.
    2020 (arXiv:2002.09797), equations 2 and 3. With B(x) the open ball around x whose radius is the distance to its
    k-th neighbour in its own set:

        precision  share of fakes in any B(real)        recall    share of reals in any B(fake)
        density    mean number of B(real) around a fake, over k
        coverage   share of reals with a fake in their B(real)

    Args:
        real: Features [N, d].
        fake: Features [N, d]: all four depend on N, so both sets must have the same.
        nearest_k: k.

    Raises:
        ValueError: If shapes differ, or N <= k.
    """
    if real.ndim != 2 or real.shape != fake.shape:
        raise ValueError(
            f"equal numbers of real and fake features are needed, got {list(real.shape)} and {list(fake.shape)}"
        )
    num = len(real)
    if not 0 < nearest_k < num:
        raise ValueError(f"nearest_k must lie in 1..{num - 1} for {num} features, got {nearest_k}")
    # Centring keeps the cancellation in the distances small.
    centre = real.double().mean(dim=0)
    real, fake = real.double() - centre, fake.double() - centre
    # A tie (d = radius, as with copied training images) is outside the open ball, and rounding must not decide
    # otherwise.
    margin = 1e-12 * float(torch.cat([real, fake]).square().sum(dim=1).max())
    radii_real = _squared_radii(real, nearest_k) - margin
    radii_fake = _squared_radii(fake, nearest_k) - margin

    balls_around = torch.zeros(num, dtype=torch.int64, device=real.device)
    recalled = covered = 0
    for rows, squared in squared_distances(real, fake, num_rows=CHUNK):
        in_real = squared < radii_real[rows, None]
        balls_around += in_real.sum(dim=0)
        covered += int(in_real.any(dim=1).sum())
        recalled += int((squared < radii_fake).any(dim=1).sum())
    return PRDC(
        precision=int((balls_around > 0).sum()) / num,
        recall=recalled / num,
        density=int(balls_around.sum()) / (nearest_k * num),
        coverage=covered / num,
    )


def _squared_radii(features: Tensor, k: int) -> Tensor:
    """Squared distance to the k-th neighbour, [N]; each point is its own zeroth."""
    blocks = squared_distances(features, features, num_rows=CHUNK)
    return torch.cat([squared.topk(k + 1, largest=False).values[:, k] for _, squared in blocks])
