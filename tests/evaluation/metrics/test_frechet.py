import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from trilemma.evaluation.metrics.frechet import Moments, frechet_distance


def gaussian(num: int, dim: int, *, seed: int, shift: float = 0.0, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) @ mixing * spread + shift


def by_sqrtm(a: Tensor, b: Tensor) -> float:
    x, y = a.numpy(), b.numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root.real))


def test_commuting_gaussians_have_the_closed_form():
    # Equal eigenvectors: |m1 - m2|^2 + sum (sqrt(e1) - sqrt(e2))^2.
    basis, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    e1, e2 = torch.linspace(0.1, 4, 7, dtype=torch.float64), torch.linspace(3, 0.0, 7, dtype=torch.float64)
    m1, m2 = torch.zeros(7, dtype=torch.float64), torch.full((7,), 0.5, dtype=torch.float64)
    a, b = Moments(m1, basis * e1 @ basis.T, 100), Moments(m2, basis * e2 @ basis.T, 100)
    expected = 7 * 0.25 + float((e1.sqrt() - e2.sqrt()).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_one_dimension_by_hand():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[5.0], [5.0 + 32**0.5]])  # deviations sqrt(2) and 4
    expected = (5 + 8**0.5 - 1) ** 2 + (4 - 2**0.5) ** 2
    assert frechet_distance(a.double(), b.double()) == pytest.approx(expected, rel=1e-6)


def test_equals_scipy_sqrtm():
    a, b = gaussian(500, 24, seed=0), gaussian(300, 24, seed=1, shift=0.3)
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-8)


class AsFeatures(nn.Module):
    """Passes features off as images."""

    num_features = 16

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_equals_torchmetrics():
    a, b = gaussian(400, 16, seed=2).float(), gaussian(350, 16, seed=3, spread=0.7).float()
    metric = FrechetInceptionDistance(AsFeatures(), normalize=True)
    metric.update(a.view(-1, 1, 4, 4), real=True)
    metric.update(b.view(-1, 1, 4, 4), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_a_set_has_no_distance_to_itself():
    a = gaussian(200, 32, seed=4)
    assert abs(frechet_distance(a, a)) < 1e-8 * float(Moments.of(a).cov.trace())


def test_symmetric_and_blind_to_order():
    a, b = gaussian(120, 12, seed=5), gaussian(90, 12, seed=6, shift=1.0)
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a[order], b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_fewer_features_than_dimensions():
    a, b = gaussian(10, 64, seed=7), gaussian(12, 64, seed=8, shift=0.5)
    # tr((S_a S_b)^1/2) is the nuclear norm of X_a X_b^T, with X the centred features over sqrt(N - 1).
    x, y = (a - a.mean(0)) / 9**0.5, (b - b.mean(0)) / 11**0.5
    mean = (a.mean(0) - b.mean(0)).square().sum()
    expected = float(mean + x.square().sum() + y.square().sum() - 2 * torch.linalg.matrix_norm(x @ y.T, "nuc"))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_a_collapsed_generator_scores_the_lost_variance():
    a = gaussian(300, 20, seed=9)
    collapsed = a.mean(0).expand(300, 20)
    assert frechet_distance(a, collapsed) == pytest.approx(float(Moments.of(a).cov.trace()), rel=1e-9)
    assert frechet_distance(collapsed, collapsed) == pytest.approx(0.0, abs=1e-20)


def test_refuses_what_has_no_covariance():
    with pytest.raises(ValueError, match="N >= 2"):
        Moments.of(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="dimensions differ: 3 and 4"):
        frechet_distance(torch.rand(5, 3), torch.rand(5, 4))
