"""Frechet distance at an infinite number of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.jackknife import jackknife_stderr
from trilemma.evaluation.metrics.order import content_order

MAX_PARTS = 5
_MAX_JACKKNIFED = 512  # features


@dataclass(frozen=True)
class Limit:
    """A value at infinitely many samples, and its standard error over the draw of the samples; None where that would take too long."""

    value: float
    stderr: float | None


def fd_infinity(
    fake: Tensor, real: Moments, *, seed: int = 0, max_parts: int = MAX_PARTS, with_stderr: bool = True
) -> Limit:
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
        with_stderr: Compute the standard error too, which takes ten times as long.

    Returns:
        The distance, which may be below zero, and its standard error by leaving out tenths of the samples; of more than 512 features,
        whose distances take seconds each, without one.

    Raises:
        ValueError: If a part would have fewer than two features, or there are fewer than three points.
    """
    num = len(fake)
    if max_parts < 3 or num // max_parts < 2:
        raise ValueError(f"{num} features in up to {max_parts} parts: a fit needs 3 points and 2 features in each part")
    shuffle = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    ordered = fake[content_order(fake)[shuffle.to(fake.device)]]
    stderr = None
    if with_stderr and fake.shape[1] <= _MAX_JACKKNIFED:
        stderr = jackknife_stderr(lambda some: _intercept(some, real, max_parts), ordered)
    return Limit(_intercept(ordered, real, max_parts), stderr)


def _intercept(ordered: Tensor, real: Moments, max_parts: int) -> float:
    """Meet 1/N = 0 with the line through the mean distances of j parts each, j = 1..J."""
    inverse_sizes, distances = [], []
    for parts in range(1, max_parts + 1):
        size = len(ordered) // parts
        found = [frechet_distance(part, real) for part in torch.split(ordered[: parts * size], size)]
        inverse_sizes.append(1 / size)
        distances.append(sum(found) / parts)
    return intercept_of(inverse_sizes, distances)


def intercept_of(x: Sequence[float], y: Sequence[float]) -> float:
    """Compute the intercept of the least-squares line through points (x, y)."""
    a, b = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    slope = ((a - a.mean()) * b).sum() / (a - a.mean()).square().sum()
    return float(b.mean() - slope * a.mean())
