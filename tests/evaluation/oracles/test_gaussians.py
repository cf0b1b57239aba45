"""The closed forms themselves, against definitions that share nothing with them."""

import numpy as np
import pytest
import scipy.linalg
import torch

from trilemma.evaluation.oracles.gaussians import Gaussian, random_gaussian, random_stretch, squared_mmd


def pair(dim: int) -> tuple[Gaussian, Gaussian]:
    generator = torch.Generator().manual_seed(dim)
    p = random_gaussian(dim, generator)
    return p, random_stretch(dim, generator).distribution(p)


def moments(distribution: Gaussian, order: int) -> torch.Tensor:
    """The moment tensor E[x x ... x], exact: Gauss-Hermite nodes integrate a polynomial of degree 3."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(2)
    dim = len(distribution.mean)
    grid = torch.cartesian_prod(*[torch.from_numpy(nodes)] * dim)
    mass = torch.cartesian_prod(*[torch.from_numpy(weights / weights.sum())] * dim).prod(dim=1)
    x = distribution.mean + grid @ torch.linalg.cholesky(distribution.cov).mT
    letters = "ijk"[:order]
    return torch.einsum(",".join(f"n{c}" for c in letters) + f",n->{letters}", *[x] * order, mass)


def test_the_mmd_is_that_of_the_moment_tensors():
    p, q = pair(4)
    binomial = {1: 3 / 4, 2: 3 / 4**2, 3: 1 / 4**3}
    expected = sum(c * (moments(p, j) - moments(q, j)).square().sum() for j, c in binomial.items())
    assert squared_mmd(p, q) == pytest.approx(float(expected), rel=1e-10)
    assert squared_mmd(p, p) == pytest.approx(0.0, abs=1e-12)


def test_the_distance_along_a_stretch_is_that_of_the_roots():
    generator = torch.Generator().manual_seed(5)
    p, stretch = random_gaussian(5, generator), random_stretch(5, generator)
    q = stretch.distribution(p)
    s, t = p.cov.numpy(), q.cov.numpy()
    expected = float((p.mean - q.mean).square().sum()) + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert stretch.squared_distance(p) == pytest.approx(expected, rel=1e-9)
    assert np.abs(s @ t - t @ s).max() > 0.01  # a case that says something: the axes differ


def test_draws_have_the_mean_and_covariance_of_the_law():
    p, _ = pair(3)
    x = p.sample(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(dim=0), p.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(x.mT.cov(), p.cov, atol=0.1, rtol=0)
