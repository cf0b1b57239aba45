import pytest
import scipy.stats
import torch
from torch import Tensor

from trilemma.evaluation.metrics.fd_infinity import fd_infinity, intercept_of
from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.order import content_order


def normal(num: int, dim: int = 16, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def standard(dim: int = 16) -> Moments:
    """The distribution of `normal` itself: a reference with no error of its own."""
    return Moments(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64), 10**9)


def test_the_line_equals_scipy():
    x, y = [0.1, 0.2, 0.35, 0.5], [1.0, 1.3, 1.2, 1.9]
    assert intercept_of(x, y) == pytest.approx(scipy.stats.linregress(x, y).intercept, rel=1e-12)


def test_the_error_is_that_of_another_set_of_samples():
    """95 % intervals hold the truth in about 95 % of 80 sets; the straightness of the fit, printed as an error, held it in 7 to 47 %."""
    truth, held = 3 * 0.5**2, 0
    for seed in range(80):
        limit = fd_infinity(normal(200, 3, seed=seed, shift=0.5), standard(3), seed=seed)
        held += abs(limit.value - truth) < 1.96 * limit.stderr
    assert held >= 68


def test_is_the_fit_through_the_distances_of_the_parts():
    fake, real = normal(90, 4, seed=0), Moments.of(normal(300, 4, seed=1, shift=0.2))
    order = content_order(fake)[torch.randperm(90, generator=torch.Generator().manual_seed(7))]
    deck = fake[order]
    one = frechet_distance(deck, real)
    two = sum(frechet_distance(deck[i : i + 45], real) for i in (0, 45)) / 2
    three = sum(frechet_distance(deck[i : i + 30], real) for i in (0, 30, 60)) / 3
    expected = intercept_of([1 / 90, 1 / 45, 1 / 30], [one, two, three])
    assert fd_infinity(fake, real, seed=7, max_parts=3).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_takes_the_bias_away(shift):
    # The truth: N(shift, 1) against N(0, 1) in 16 dimensions is 16 shift^2 apart.
    truth = 16 * shift**2
    sets = [normal(400, seed=s, shift=shift) for s in range(20)]
    plain = torch.tensor([frechet_distance(x, standard()) for x in sets]).mean() - truth
    extrapolated = torch.tensor([fd_infinity(x, standard(), seed=s).value for s, x in enumerate(sets)]).mean()
    assert plain > 0.15
    assert abs(extrapolated - truth) < plain / 3


def test_blind_to_order_and_seeded():
    fake, real = normal(120, 4, seed=3), Moments.of(normal(200, 4, seed=4))
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    assert fd_infinity(fake[order], real) == fd_infinity(fake, real)
    assert fd_infinity(fake, real, seed=1) != fd_infinity(fake, real)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="9 features in up to 5 parts"):
        fd_infinity(normal(9, 4, seed=5), standard(4))


def test_content_order_sorts_by_columns():
    features = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert content_order(features).tolist() == [2, 0, 3, 1]
