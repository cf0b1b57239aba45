import prdc as reference
import pytest
import sklearn.metrics
import torch

from trilemma.evaluation.metrics import prdc as module
from trilemma.evaluation.metrics.prdc import PRDC, Balls, prdc


def normal(num: int, dim: int = 8, *, seed: int, shift: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, dim, generator=generator, dtype=torch.float64) * spread + shift


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.7, 0.5), (0.0, 2.0)])
@pytest.mark.parametrize("k", [1, 5])
def test_equals_the_prdc_package(monkeypatch, shift, spread, k):
    one_job = sklearn.metrics.pairwise_distances
    # The package asks for eight processes whatever the machine has.
    monkeypatch.setattr(
        sklearn.metrics, "pairwise_distances", lambda x, y, metric, n_jobs: one_job(x, y, metric=metric)
    )
    real, fake = normal(150, seed=0), normal(150, seed=1, shift=shift, spread=spread)
    expected = reference.compute_prdc(real.numpy(), fake.numpy(), k)
    ours = prdc(real, fake, nearest_k=k)
    assert 0 < ours.recall + ours.precision < 2  # a case that says something
    assert ours == PRDC(**{name: pytest.approx(float(value), abs=1e-12) for name, value in expected.items()})


def test_identical_sets_are_perfect_and_ties_are_outside():
    x = normal(200, seed=2) + 10
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    # The k-th neighbour lies on the sphere, so a ball around x holds x and k - 1 others; also where rounding moved it.
    for copies in (x[order], x[order] * (1 + 3e-16)):
        assert prdc(x, copies) == PRDC(1.0, 1.0, 1.0, 1.0)


def test_disjoint_sets_share_nothing():
    assert prdc(normal(60, seed=3), normal(60, seed=4, shift=100.0)) == PRDC(0.0, 0.0, 0.0, 0.0)


def test_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [10.0]])  # radii at k=1: 1, 1, 2, 7
    fake = torch.tensor([[0.5], [2.5], [2.6], [20.0]])  # radii: 2, 0.1, 0.1, 17.4
    # Real balls around the fakes: those of {0, 1}, {3}, {3}, and none, for 20 is 10 away from 10. Fake balls around the
    # reals: 0 and 1 lie within 2 of 0.5; 3 and 10 within 17.4 of 20.
    expected = PRDC(precision=3 / 4, recall=1.0, density=4 / 4, coverage=3 / 4)
    assert prdc(real, fake, nearest_k=1) == expected


def test_collapse_keeps_precision_and_loses_recall():
    real = normal(100, seed=5)
    fake = real[:1].expand(100, -1)
    result = prdc(real, fake)
    assert result.precision == 1.0
    assert result.recall == 0.0
    assert 0 < result.coverage <= 0.2


def test_blind_to_order_and_to_chunks(monkeypatch):
    real, fake = normal(130, seed=6), normal(130, seed=7, shift=0.5)
    whole = prdc(real, fake)
    generator = torch.Generator().manual_seed(1)
    assert prdc(real[torch.randperm(130, generator=generator)], fake[torch.randperm(130, generator=generator)]) == whole
    monkeypatch.setattr(module, "CHUNK", 17)
    assert prdc(real, fake) == whole


def test_a_reference_is_prepared_once():
    real, fake = normal(90, seed=8) + 50, normal(90, seed=9, shift=50.3)
    assert prdc(Balls.of(real, nearest_k=3), fake, nearest_k=3) == prdc(real, fake, nearest_k=3)
    with pytest.raises(ValueError, match="reach to neighbour 5, not 3"):
        prdc(Balls.of(real), fake, nearest_k=3)


def test_refuses_unequal_sets_and_bad_k():
    with pytest.raises(ValueError, match="equal numbers"):
        prdc(normal(30, seed=0), normal(29, seed=1))
    with pytest.raises(ValueError, match=r"1\.\.4"):
        prdc(normal(5, seed=0), normal(5, seed=1), nearest_k=5)
