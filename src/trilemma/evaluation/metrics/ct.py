"""C_T: are samples closer to the training set than held-out images are?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.evaluation.metrics.kmeans import kmeans, nearest_centre
from trilemma.evaluation.metrics.nearest import nearest

MIN_GENERATED = 20


class Placed(NamedTuple):
    """What C_T knows of N images: distance to the nearest training image, float64 [N], and cell, int64 [N]."""

    distances: Tensor
    cells: Tensor


@dataclass(frozen=True)
class CT:
    """The score and what it rests on.

    Attributes:
        score: Far below 0: samples copy the training set; far above: they are farther from it than real images are;
            NaN if no cell could be judged.
        judged: Share of held-out images that lie in judged cells, in [0, 1].
    """

    score: float
    judged: float


def data_copying(train: Tensor, held_out: Tensor, generated: Tensor, *, num_cells: int, seed: int) -> CT:
    """C_T over cells that k-means finds in the training set.

    Args:
        train: Features [L, d].
        held_out: Features [n, d] of real images outside the training set.
        generated: Features [m, d].
        num_cells: Number of cells.
        seed: Of k-means.

    Raises:
        ValueError: If shapes do not fit, or there are more cells than training images.
    """
    centres = kmeans(train, num_cells, seed=seed)
    p, q = (Placed(nearest(x, train).distances[:, 0], nearest_centre(x, centres)) for x in (held_out, generated))
    return c_t(p, q)


def c_t(held_out: Placed, generated: Placed, *, min_generated: int = MIN_GENERATED) -> CT:
    """C_T: the Mann-Whitney scores of the cells, weighted by the held-out images in each.

        C_T = sum_pi P_n(pi) Z_pi / sum_pi P_n(pi)

    Meehan, Chaudhuri and Dasgupta 2020 (arXiv:2004.05675), with d(x) the distance to the nearest training point
    and the sums over cells of at least tau = `min_generated` / m of the generated images and at least one held-out
    image. Where the paper leaves a choice: d(x) looks at the whole training set (the authors' code looks at the part
    in x's cell), ties count half in U and shrink its variance, and there is no continuity correction.

    The score grows with the root of the number of images: compare at equal n and m. Held-out images in the place of
    generated ones have mean 0 and a deviation below 1.

    Args:
        held_out: n >= 1 real images outside the training set (P_n).
        generated: m >= 1 generated images (Q_m).
        min_generated: Generated images that a judged cell has at least.
    """
    score = weight = 0.0
    for cell in torch.unique(held_out.cells).tolist():
        p, q = held_out.distances[held_out.cells == cell], generated.distances[generated.cells == cell]
        if len(q) >= min_generated:
            score += len(p) * mann_whitney_z(q, p)
            weight += len(p)
    return CT(score / weight if weight else float("nan"), weight / len(held_out.cells))


def mann_whitney_z(a: Tensor, b: Tensor) -> float:
    """Standardised Mann-Whitney U: positive where a tends to exceed b, 0 where all values are equal.

        z = (U - m n / 2) / sqrt(m n / 12 * (N + 1 - sum_t (t^3 - t) / (N (N - 1)))),    N = m + n

    with U the number of pairs a > b, equal ones counting half, and t the sizes of groups of equal values.

    Args:
        a: [m >= 1].
        b: [n >= 1].
    """
    m, n = len(a), len(b)
    num = m + n
    _, group, sizes = torch.unique(torch.cat([a, b]), return_inverse=True, return_counts=True)
    sizes = sizes.double()
    mid_ranks = sizes.cumsum(dim=0) - (sizes - 1) / 2
    u = float(mid_ranks[group[:m]].sum()) - m * (m + 1) / 2
    ties = float((sizes**3 - sizes).sum()) / (num * (num - 1))
    variance = m * n / 12 * (num + 1 - ties)
    return (u - m * n / 2) / variance**0.5 if variance > 0 else 0.0
