import math

import pytest
import scipy.stats
import torch

from trilemma.evaluation.metrics.ct import CT, Placed, c_t, data_copying, mann_whitney_z


def normal(num: int, dim: int = 4, *, seed: int, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread


@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0])
@pytest.mark.parametrize("ties", [False, True])
def test_z_equals_scipy(shift, ties):
    a, b = normal(30, 1, seed=0).flatten() + shift, normal(45, 1, seed=1).flatten()
    if ties:
        a, b = (a * 2).round(), (b * 2).round()
    p = scipy.stats.mannwhitneyu(a, b, alternative="less", method="asymptotic", use_continuity=False).pvalue
    assert mann_whitney_z(a, b) == pytest.approx(scipy.stats.norm.ppf(p), rel=1e-9)


def test_z_without_ties_is_the_papers():
    a, b = torch.tensor([1.0, 4.0, 6.0]), torch.tensor([2.0, 3.0, 5.0, 7.0])
    u = 0 + 2 + 3
    assert mann_whitney_z(a, b) == pytest.approx((u - 6) / math.sqrt(12 * 8 / 12), rel=1e-12)
    assert mann_whitney_z(b, a) == -mann_whitney_z(a, b)
    assert mann_whitney_z(torch.ones(3), torch.ones(4)) == 0.0


def test_cells_are_weighted_by_held_out_images_and_sparse_ones_left_out():
    held_out = Placed(normal(60, 1, seed=2).flatten(), torch.tensor([0] * 10 + [1] * 30 + [2] * 20))
    generated = Placed(normal(60, 1, seed=3).flatten(), torch.tensor([0] * 25 + [1] * 20 + [2] * 5 + [3] * 10))
    z0 = mann_whitney_z(generated.distances[:25], held_out.distances[:10])
    z1 = mann_whitney_z(generated.distances[25:45], held_out.distances[10:40])
    found = c_t(held_out, generated, min_generated=20)
    assert found.score == pytest.approx((10 * z0 + 30 * z1) / 40, rel=1e-12)
    assert found.judged == 40 / 60
    nothing = c_t(held_out, generated, min_generated=26)
    assert math.isnan(nothing.score)
    assert nothing.judged == 0.0


def test_held_out_images_score_nothing_copies_far_below_and_noise_far_above():
    train, held_out = normal(400, seed=4), normal(200, seed=5)

    def score(generated: torch.Tensor) -> CT:
        return data_copying(train, held_out, generated, num_cells=3, seed=0)

    assert abs(score(normal(200, seed=6)).score) < 2
    assert score(train[:200]).score < -8
    assert score(train[:200] + normal(200, seed=7, spread=0.01)).score < -8
    assert score(normal(200, seed=8, spread=2.0)).score > 3
    assert score(normal(200, seed=6)).judged == 1.0


def test_the_null_is_centred_with_a_deviation_below_one():
    train = normal(150, seed=9)
    scores = torch.tensor(
        [
            data_copying(train, normal(80, seed=10 + s), normal(80, seed=1000 + s), num_cells=2, seed=0).score
            for s in range(100)
        ]
    )
    assert abs(float(scores.mean())) < 3 * 0.1
    assert 0.5 < float(scores.std()) < 1.0
