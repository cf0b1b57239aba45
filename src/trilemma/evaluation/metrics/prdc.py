"""Precision, recall, density and coverage from k-nearest-neighbour balls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.evaluation.metrics.distances import squared_distances

CHUNK = 128  # rows of the distance matrix that exist at a time: 10 MB at N = 10,000, which a cache holds


@dataclass(frozen=True)
class PRDC:
    """The four numbers; each lies in [0, 1] but density, which may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Balls:
    """A set of features with the squared radii of its balls, which a reference need not find twice.

    Attributes:
        features: [N, d].
        nearest_k: k.
        squared_radii: float64 [N].
    """

    features: Tensor
    nearest_k: int
    squared_radii: Tensor

    @staticmethod
    def of(features: Tensor, *, nearest_k: int = 5) -> Balls:
        """Balls of features [N, d].

        Raises:
            ValueError: If N <= k.
        """
        num = len(features)
        if not 0 < nearest_k < num:
            raise ValueError(f"nearest_k must lie in 1..{num - 1} for {num} features, got {nearest_k}")
        # Centring keeps the cancellation in the distances small.
        wide = features.double()
        return Balls(features, nearest_k, _squared_radii(wide - wide.mean(dim=0), nearest_k))


def prdc(real: Tensor | Balls, fake: Tensor, *, nearest_k: int = 5) -> PRDC:
    """Compare two sets of features by the balls that reach to each one's k-th nearest neighbour.

    Precision and recall: Kynkaanniemi et al. 2019 (arXiv:1904.06991), equation 1. Density and coverage: Naeem et al.
    2020 (arXiv:2002.09797), equations 2 and 3. With B(x) the open ball around x whose radius is the distance to its
    k-th neighbour in its own set:

        precision  share of fakes in any B(real)        recall    share of reals in any B(fake)
        density    mean number of B(real) around a fake, over k
        coverage   share of reals with a fake in their B(real)

    Args:
        real: Features [N, d], or what is kept of them.
        fake: Features [N, d]: all four depend on N, so both sets must have the same.
        nearest_k: k, which must be that of `Balls` where they are given.

    Raises:
        ValueError: If shapes differ, or N <= k.
    """
    points = real.features if isinstance(real, Balls) else real
    if points.ndim != 2 or points.shape != fake.shape:
        raise ValueError(
            f"equal numbers of real and fake features are needed, got {list(points.shape)} and {list(fake.shape)}"
        )
    balls = real if isinstance(real, Balls) else Balls.of(real, nearest_k=nearest_k)
    if balls.nearest_k != nearest_k:
        raise ValueError(f"the balls reach to neighbour {balls.nearest_k}, not {nearest_k}")
    num = len(points)
    centre = points.double().mean(dim=0)
    a, b = points.double() - centre, fake.double() - centre
    # A tie (d = radius, as with copied training images) is outside the open ball, and rounding must not decide
    # otherwise.
    margin = 1e-12 * float(torch.cat([a, b]).square().sum(dim=1).max())
    radii_real = balls.squared_radii - margin
    radii_fake = _squared_radii(b, nearest_k) - margin

    balls_around = torch.zeros(num, dtype=torch.int64, device=points.device)
    recalled = covered = 0
    for rows, squared in squared_distances(a, b, num_rows=CHUNK):
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
