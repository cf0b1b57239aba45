"""Frechet distance at an infinite number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.order import content_order

MAX_PARTS = 5


@dataclass(frozen=True)
class Line:
    """Intercept of a line and its standard error."""

    intercept: float
    stderr: float


def fd_infinity(fake: Tensor, real: Moments, *, seed: int = 0, max_parts: int = MAX_PARTS) -> Line:
    """Frechet distance without the bias of a finite number of samples.

    The distance of N samples is FD_inf + b / N + O(1 / N^2): a line through distances at several N meets 1/N = 0 at
    FD_inf. Chong and Forsyth 2020 (arXiv:1911.07023). For j = 1..J the samples are dealt, by a seeded
    shuffle of their sorted features, into j parts of N // j, and the mean of the parts' distances is the point at
    j / N: all samples have a say in every point, where the paper draws one subset for each of 15 sizes. The bias that
    the real set's own size leaves remains.

    Args:
        fake: Features [N, d]; N // J should be well above d, or the curve bends.
        real: Moments of the real features, held fixed.
        seed: Of the shuffle; the order of the features has no part in it.
        max_parts: J.

    Returns:
        The distance, which may be below zero, and the standard error of the fit. That says how straight the line is,
        and not how far another set of samples would lie.

    Raises:
        ValueError: If a part would have fewer than two features, or there are fewer than three points.
    """
    num = len(fake)
    if max_parts < 3 or num // max_parts < 2:
        raise ValueError(f"{num} features in up to {max_parts} parts: a fit needs 3 points and 2 features in each part")
    shuffle = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    ordered = fake[content_order(fake)[shuffle.to(fake.device)]]
    inverse_sizes, distances = [], []
    for parts in range(1, max_parts + 1):
        size = num // parts
        found = [frechet_distance(part, real) for part in torch.split(ordered[: parts * size], size)]
        inverse_sizes.append(1 / size)
        distances.append(sum(found) / parts)
    return fit_line(inverse_sizes, distances)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Intercept of the least-squares line through points (x, y), three at least, and its standard error."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    spread = (a - a.mean()).square().sum()
    slope = ((a - a.mean()) * b).sum() / spread
    intercept = b.mean() - slope * a.mean()
    residual = (b - intercept - slope * a).square().sum() / (len(a) - 2)
    return Line(float(intercept), float((residual * (1 / len(a) + a.mean() ** 2 / spread)).sqrt()))
