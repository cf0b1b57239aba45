"""What holds of every discrete distribution."""

import pytest
import torch
from distribution_cases import DISCRETE, MAKERS, B, C, H, K, W, random, table, values

from drawn import assert_drawn_from
from trilemma.distributions.base import Distribution
from trilemma.distributions.categorical_levels import CategoricalLevels
from trilemma.errors import UserError
from trilemma.processes.noise import Noise, TorchNoise


def repeated(maker, num):
    """The distribution of the first image, `num` times over."""
    one = maker(torch.float64)

    def widen(x):
        return x[:1].expand(num, *x.shape[1:]) if isinstance(x, torch.Tensor) else x

    for part in (one, getattr(one, "classes", None)):
        if part is not None:
            vars(part).update({name: widen(value) for name, value in vars(part).items()})
    return one


@pytest.mark.parametrize("maker", DISCRETE)
def test_probabilities_of_all_values_sum_to_one(maker):
    total = table(maker(torch.float64)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


@pytest.mark.parametrize("maker", DISCRETE)
def test_the_mean_is_that_over_the_values(maker):
    distribution = maker(torch.float64)
    p = table(distribution).exp()
    expected = torch.einsum("n...,n->...", p, values(distribution).double())
    torch.testing.assert_close(distribution.mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("maker", DISCRETE)
def test_draws_have_the_probabilities_that_are_scored(maker):
    distribution = repeated(maker, 6000)
    drawn = distribution.sample(Noise(11, torch.arange(6000)))
    possible = values(distribution)
    index = (drawn.unsqueeze(-1) - possible).abs().argmin(-1)
    torch.testing.assert_close(possible[index], drawn, rtol=0, atol=1e-15)
    p = table(distribution).exp()[:, 0]
    for position in range(p[0].numel()):
        assert_drawn_from(index.flatten(1)[:, position], p.flatten(1)[:, position])


@pytest.mark.parametrize("maker", DISCRETE)
def test_an_image_is_drawn_alike_in_any_batch(maker):
    distribution = repeated(maker, 30)
    whole = distribution.sample(Noise(2, torch.arange(30)))
    alone = repeated(maker, 1).sample(Noise(2, torch.tensor([17])))
    assert torch.equal(alone, whole[17:18])
    assert not torch.equal(whole[16], whole[17])


@pytest.mark.parametrize("maker", DISCRETE)
def test_low_precision_is_scored_in_float32(maker):
    low, high = maker(torch.bfloat16), maker(torch.float32)
    x = high.sample(TorchNoise(torch.Generator().manual_seed(0)))
    assert low.log_prob(x).dtype == high.log_prob(x).dtype == torch.float32
    rounded = x.bfloat16() if x.is_floating_point() else x
    torch.testing.assert_close(high.log_prob(rounded), high.log_prob(x))
    exact = maker(torch.float64).log_prob(x)
    torch.testing.assert_close(high.log_prob(x).double(), exact, rtol=2e-5, atol=2e-5)
    assert high.log_prob(x).shape == x.shape == high.mean.shape


@pytest.mark.parametrize("maker", DISCRETE)
def test_a_temperature_sharpens_and_one_changes_nothing(maker):
    distribution = maker(torch.float64)
    torch.testing.assert_close(table(distribution.tempered(1.0)), table(distribution))
    assert table(distribution.tempered(0.3)).amax(0).mean() > table(distribution).amax(0).mean()
    for wrong in (0.0, -1.0, float("inf")):
        with pytest.raises(UserError, match="temperature"):
            distribution.tempered(wrong)


def test_the_temperature_of_logits_divides_them():
    logits = random(B, C, H, W, K)
    cold = table(CategoricalLevels(logits).tempered(0.5))
    torch.testing.assert_close(cold.movedim(0, -1), (2 * logits).log_softmax(-1))
    one = MAKERS["bernoulli"](torch.float64)
    torch.testing.assert_close(one.tempered(0.5).mean, 2 * (2 * one.logits).sigmoid() - 1)


def test_a_distribution_without_a_temperature_says_so():
    class Still(Distribution):
        mean = torch.zeros(1)

        def sample(self, noise):
            return self.mean

        def log_prob(self, x):
            return x

    with pytest.raises(UserError, match="Still defines none"):
        Still().tempered(0.5)
