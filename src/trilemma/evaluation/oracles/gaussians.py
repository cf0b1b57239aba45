"""Gaussians and what is known of them in closed form, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution.

    Attributes:
        mean: float64 [d].
        cov: Covariance, float64 [d, d].
    """

    mean: Tensor
    cov: Tensor

    def sample(self, num: int, generator: torch.Generator) -> Tensor:
        """Independent draws, float64 [num, d]."""
        root: Tensor = torch.linalg.cholesky(self.cov)
        return self.mean + torch.randn(num, len(self.mean), generator=generator, dtype=torch.float64) @ root.mT


@dataclass(frozen=True)
class Stretch:
    """The map x -> A x + b with A symmetric and positive definite: the optimal transport from any distribution to its image.

    Attributes:
        matrix: A, float64 [d, d].
        shift: b, float64 [d].
    """

    matrix: Tensor
    shift: Tensor

    def of(self, features: Tensor) -> Tensor:
        """The images of features [N, d]."""
        return features @ self.matrix + self.shift

    def distribution(self, source: Gaussian) -> Gaussian:
        """The image of a Gaussian, in general with other principal axes."""
        return Gaussian(self.matrix @ source.mean + self.shift, self.matrix @ source.cov @ self.matrix)

    def squared_distance(self, source: Gaussian) -> float:
        """Squared Frechet distance from a Gaussian to its image, |m - Am - b|^2 + tr((I - A) S (I - A)): no root at all.

        A is the gradient of a convex function, so it is the optimal transport (Brenier 1991), and the squared
        2-Wasserstein distance is the mean of |x - Ax - b|^2.
        """
        moved = torch.eye(len(self.shift), dtype=torch.float64) - self.matrix
        mean = (moved @ source.mean - self.shift).square().sum()
        return float(mean + (moved @ source.cov @ moved).trace())


def random_gaussian(dim: int, generator: torch.Generator) -> Gaussian:
    """A Gaussian with random mean and a well-conditioned random covariance."""
    return Gaussian(0.5 * torch.randn(dim, generator=generator, dtype=torch.float64), _definite(dim, generator))


def random_stretch(dim: int, generator: torch.Generator) -> Stretch:
    """A stretch along random axes."""
    shift = 0.3 * torch.randn(dim, generator=generator, dtype=torch.float64)
    return Stretch(_definite(dim, generator), shift)


def squared_mmd(p: Gaussian, q: Gaussian) -> float:
    """Squared maximum mean discrepancy under k(x, y) = (x.y / d + 1)^3.

    E k(x, y) = 1 + 3 <m, n> / d + 3 <M2, N2> / d^2 + <M3, N3> / d^3 with the moments of both distributions. For Gaussians
    with means m, n and covariances S, T, by Isserlis' theorem,

        <M2, N2> = tr(ST) + m'Tm + n'Sn + (m.n)^2
        <M3, N3> = (m.n)^3 + 3 (m.n) (tr(ST) + m'Tm + n'Sn) + 6 m'TSn
    """
    return _mean_kernel(p, p) + _mean_kernel(q, q) - 2 * _mean_kernel(p, q)


def _mean_kernel(p: Gaussian, q: Gaussian) -> float:
    dim, linear = len(p.mean), float(p.mean @ q.mean)
    crossed = float((p.cov * q.cov).sum() + p.mean @ q.cov @ p.mean + q.mean @ p.cov @ q.mean)
    second = crossed + linear**2
    third = linear**3 + 3 * linear * crossed + 6 * float(p.mean @ q.cov @ p.cov @ q.mean)
    return 1 + 3 * linear / dim + 3 * second / dim**2 + third / dim**3


def _definite(dim: int, generator: torch.Generator) -> Tensor:
    """Random axes with eigenvalues from 0.5 to 2."""
    axes, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    values = 2 ** (2 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1)
    matrix: Tensor = axes * values @ axes.mT
    return (matrix + matrix.mT) / 2
