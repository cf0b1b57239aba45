"""Frechet distance between Gaussians fitted to two sets of features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """First two moments of a set of features.

    Attributes:
        mean: float64 [d].
        cov: Unbiased covariance (N - 1), float64 [d, d].
        num: Number of features N they come from.
    """

    mean: Tensor
    cov: Tensor
    num: int

    @staticmethod
    def of(features: Tensor) -> Moments:
        """Moments of features [N, d].

        Raises:
            ValueError: If N < 2, which leaves the covariance undefined.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"moments need features [N >= 2, d], got {list(features.shape)}")
        wide = features.double()
        mean = wide.mean(dim=0)
        centred = wide - mean
        return Moments(mean, centred.mT @ centred / (len(wide) - 1), len(wide))


def frechet_distance(a: Tensor | Moments, b: Tensor | Moments) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians.

        |mu_a - mu_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

    Heusel et al. 2017 (arXiv:1706.08500), equation 6. The trace of the root is the sum of the roots of the
    eigenvalues of R S_b R with R = S_a^(1/2): this product is symmetric and positive semi-definite where S_a S_b is
    not, so symmetric eigensolvers apply and a rank-deficient covariance (N <= d, a collapsed generator) gives no
    imaginary part and no NaN.

    Args:
        a: Features [N, d], or their moments.
        b: Features [M, d], or their moments.

    Returns:
        The distance. Rounding may leave it a little below zero for equal sets; clamp it for display only.

    Raises:
        ValueError: If the feature dimensions differ, or a set has fewer than two features.
    """
    a = a if isinstance(a, Moments) else Moments.of(a)
    b = b if isinstance(b, Moments) else Moments.of(b)
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"feature dimensions differ: {len(a.mean)} and {len(b.mean)}")
    eigenvalues, vectors = torch.linalg.eigh(a.cov)
    root_a = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.mT
    product = root_a @ b.cov @ root_a
    # Rounding breaks the symmetry that eigvalsh takes for granted.
    spectrum = torch.linalg.eigvalsh((product + product.mT) / 2)
    trace_of_root = spectrum.clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * trace_of_root
    return float(distance)
