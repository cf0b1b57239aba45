"""Kernel inception distance: squared maximum mean discrepancy with a cubic kernel, and how far it is to be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_ENTRIES = 2**20  # of the kernel matrix that exist at a time: 8 MB, which a cache holds


@dataclass(frozen=True)
class KID:
    """The distance, which may be below zero for equal distributions, and its standard error."""

    value: float
    stderr: float


class Sums(NamedTuple):
    """Sums over a kernel matrix: of rows, of columns, of squares."""

    rows: Tensor
    columns: Tensor
    squares: float

    @property
    def total(self) -> float:
        """Sum of all entries."""
        return float(self.rows.sum())


@dataclass(frozen=True)
class Within:
    """A set of features with the sums over its own kernel matrix, which a reference need not take twice.

    Attributes:
        features: float64 [N, d].
        sums: Over k(x_i, x_j), i != j.
    """

    features: Tensor
    sums: Sums

    @staticmethod
    def of(features: Tensor) -> Within:
        """Sums of features [N, d].

        Raises:
            ValueError: If N < 4, which leaves the variance without an unbiased estimate.
        """
        if features.ndim != 2 or len(features) < 4:
            raise ValueError(f"a kernel distance needs features [N >= 4, d], got {list(features.shape)}")
        wide = features.double()
        return Within(wide, _sums(wide))


def kid(x: Tensor | Within, y: Tensor | Within) -> KID:
    """Unbiased squared MMD of two sets of features under k(x, y) = (x.y / d + 1)^3.

        mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    Binkowski et al. 2018 (arXiv:1801.01401); Gretton et al. 2012 (JMLR 13), lemma 6. Symmetric in x and y. Being
    unbiased, it needs no equal sizes and no subsets: all pairs are used.

    The standard error is the root of an unbiased estimate of the estimator's variance, over new draws of both sets.
    The spread between overlapping subsets, which other packages print, is of another quantity. Two models scored
    against one y share its part of the error: their difference is known better than this.

    Args:
        x: Features [m >= 4, d], drawn independently, or what is kept of them.
        y: Features [n >= 4, d], drawn independently of each other and of x, or what is kept of them.

    Raises:
        ValueError: If feature dimensions differ or a set has fewer than four features.
    """
    x = x if isinstance(x, Within) else Within.of(x)
    y = y if isinstance(y, Within) else Within.of(y)
    if x.features.shape[1] != y.features.shape[1]:
        raise ValueError(f"feature dimensions differ: {x.features.shape[1]} and {y.features.shape[1]}")
    m, n = len(x.features), len(y.features)
    xx, yy, xy = x.sums, y.sums, _sums(x.features, y.features)
    value = xx.total / (m * (m - 1)) + yy.total / (n * (n - 1)) - 2 * xy.total / (m * n)
    return KID(value, _variance(xx, yy, xy, floor=0.0) ** 0.5)


def _sums(x: Tensor, y: Tensor | None = None) -> Sums:
    """Sums over k(x, y), or over k(x, x) without its diagonal."""
    other = x if y is None else y
    columns, squares = x.new_zeros(len(other)), 0.0
    rows: list[Tensor] = []
    step = max(1, MAX_ENTRIES // len(other))
    for start in range(0, len(x), step):
        linear = torch.addmm(x.new_ones(()), x[start : start + step], other.mT, alpha=1 / x.shape[1])
        kernel = linear * linear * linear
        if y is None:
            kernel.diagonal(offset=start).zero_()
        rows.append(kernel.sum(dim=1))
        columns += kernel.sum(dim=0)
        squares += float(torch.linalg.vector_norm(kernel)) ** 2
    return Sums(torch.cat(rows), columns, squares)


def _variance(xx: Sums, yy: Sums, xy: Sums, *, floor: float) -> float:
    """Unbiased estimate of the variance of the unbiased squared MMD (with floor -inf).

    With phi(x) = mu_P + u and phi(y) = mu_Q + v in the kernel's feature space, and delta = mu_P - mu_Q, the terms of
    the estimator are uncorrelated (Hoeffding), and its variance is exactly

        4/m E<u, delta>^2 + 4/n E<v, delta>^2
          + 2/(m(m-1)) |C_P|^2 + 2/(n(n-1)) |C_Q|^2 + 4/(mn) <C_P, C_Q>

    with the covariances C_P = E uu', C_Q = E vv' and their Hilbert-Schmidt products. The first two terms vanish where
    P = Q, and their estimates may fall below zero there: `floor` bounds each of the five.
    """
    m, n = len(xx.rows), len(yy.rows)
    c_pp, c_qq = _squared_covariance(xx), _squared_covariance(yy)
    # Independent unbiased estimates of C_P and C_Q: the product of a doubly centred kernel matrix with itself.
    centred = xy.squares - xy.rows.square().sum() / n - xy.columns.square().sum() / m + xy.rows.sum().square() / (m * n)
    c_pq = float(centred) / ((m - 1) * (n - 1))
    # Sample variances of <phi(x_i), delta>, less what the noise in the estimated delta adds to them.
    along_p = float((xx.rows / (m - 2) - xy.rows / n).var()) - c_pp / (m - 2) - c_pq / n
    along_q = float((yy.rows / (n - 2) - xy.columns / m).var()) - c_qq / (n - 2) - c_pq / m
    terms = (
        4 / m * along_p,
        4 / n * along_q,
        2 / (m * (m - 1)) * c_pp,
        2 / (n * (n - 1)) * c_qq,
        4 / (m * n) * c_pq,
    )
    return sum(max(term, floor) for term in terms)


def _squared_covariance(sums: Sums) -> float:
    """Unbiased estimate of |C|^2 from k(x, x) without its diagonal (Song et al. 2012, JMLR 13, the unbiased HSIC)."""
    n = len(sums.rows)
    products = sums.total**2 / ((n - 1) * (n - 2)) - 2 / (n - 2) * float(sums.rows.square().sum())
    return (sums.squares + products) / (n * (n - 3))
