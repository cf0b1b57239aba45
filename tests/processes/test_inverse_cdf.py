import pytest
import torch
from scipy import stats

from trilemma.processes.inverse_cdf import inverse_cdf


def grid(num):
    """The midpoints of num equal parts of [0, 1): what a uniform would be without its luck."""
    return (torch.arange(num, dtype=torch.float64) + 0.5) / num


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [2, 5, 15, 16, 17, 32, 100, 257])
@pytest.mark.parametrize("log", [False, True])
def test_every_class_has_its_share_of_the_unit_interval(num_classes, dtype, log):
    num = 50_000
    p = torch.rand(num_classes, dtype=dtype, generator=torch.Generator().manual_seed(0)) ** 3
    p[num_classes // 2] = 0
    weights = (p.log() if log else p).expand(num, num_classes)
    counts = torch.bincount(inverse_cdf(weights, grid(num), log=log), minlength=num_classes)
    expected = num * p.double() / p.double().sum()
    # A class is an interval: it may gain or lose one midpoint.
    assert (counts - expected).abs().max() <= 1 + 3e-6 * num
    assert counts[num_classes // 2] == 0


def test_rows_are_independent_and_may_be_many():
    p = torch.rand(9000, 130, generator=torch.Generator().manual_seed(1))
    u = torch.rand(9000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = inverse_cdf(p, u)
    for rows in (slice(0, 1), slice(4030, 4040), slice(8999, 9000)):
        assert torch.equal(inverse_cdf(p[rows], u[rows]), whole[rows])


@pytest.mark.parametrize("num_classes", [5, 40, 200])
def test_a_class_of_probability_zero_is_never_drawn(num_classes):
    generator = torch.Generator().manual_seed(3)
    for scale in (1e-30, 1.0, 1e30):
        p = torch.rand(2000, num_classes, generator=generator) * scale
        p = p * (torch.rand(2000, num_classes, generator=generator) < 0.1)
        p[:, 0] = 0
        p[:, num_classes - 1] = 0
        p[:, num_classes // 2] = scale
        for value in (0.0, 0.5, 1.0 - 2.0**-53):
            drawn = inverse_cdf(p, torch.full((2000,), value, dtype=torch.float64))
            assert (p.gather(1, drawn[:, None]) > 0).all()


def test_the_tail_is_drawn_at_its_own_rate():
    """Classes of 2e-8 that hold 1 % together: below float32's spacing near 1, and beyond float32 Gumbel noise."""
    num_tail = 500_000
    p = torch.full((1, num_tail + 1), 0.01 / num_tail)
    p[0, num_tail // 3] = 0.99
    num = 2000
    u = grid(num)
    drawn = torch.cat([inverse_cdf(p, u[i : i + 1]) for i in range(0, num, 20)])
    share = float((drawn != num_tail // 3).double().mean())
    assert stats.binomtest(int(share * len(drawn)), len(drawn), 0.01).pvalue > 0.01
    # And class by class: the midpoint of a class's own interval draws that class.
    order = inverse_cdf(p, torch.tensor([0.0], dtype=torch.float64))
    assert order.item() != num_tail // 3
    heavy = torch.full((1, 160), 1e-12, dtype=torch.float64)
    heavy[0, 3] = 1
    seen = {int(inverse_cdf(heavy, torch.tensor([k * 1e-12 + 5e-13], dtype=torch.float64))) for k in range(3)}
    assert len(seen) == 3
    assert 3 not in seen


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_weights_without_a_sum_are_refused(bad):
    with pytest.raises(RuntimeError, match="positive finite sum"):
        inverse_cdf(torch.full((3, 20), bad), grid(3))
