import pytest
import torch
from distribution_cases import random
from scipy import stats

from trilemma.distributions.normal import Normal
from trilemma.errors import UserError
from trilemma.processes.noise import Noise


def test_the_density_is_that_of_torch():
    mean, log_std, x = random(4, 5), random(4, 5, seed=1), random(4, 5, seed=2)
    expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(x)
    torch.testing.assert_close(Normal(mean, log_std).log_prob(x), expected)
    assert torch.equal(Normal(mean, log_std).mean, mean)
    leaves = (mean.requires_grad_(), log_std.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, s: Normal(m, s).log_prob(x), leaves, fast_mode=True)


def test_draws_are_normal_and_an_image_is_drawn_alike_in_any_batch():
    mean, log_std = torch.full((500, 40), 0.7), torch.tensor(-1.0)
    drawn = Normal(mean, log_std).sample(Noise(3, torch.arange(500)))
    z = (drawn.double() - 0.7) / torch.tensor(-1.0).double().exp()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.equal(Normal(mean[:1], log_std).sample(Noise(3, torch.tensor([17]))), drawn[17:18])


def test_the_temperature_multiplies_the_deviation():
    cold = Normal(torch.zeros(2), torch.tensor([0.0, 1.0])).tempered(0.5)
    torch.testing.assert_close(cold.log_std.exp(), 0.5 * torch.tensor([0.0, 1.0]).exp())
    with pytest.raises(UserError, match="temperature=0"):
        cold.tempered(0)


def test_low_precision_is_scored_in_float32():
    low = Normal(torch.zeros(2, dtype=torch.bfloat16), torch.zeros((), dtype=torch.bfloat16))
    assert low.log_prob(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
