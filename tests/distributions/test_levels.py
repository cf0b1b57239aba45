"""Distributions of images on levels: closed forms, gradients and extremes."""

import math

import pytest
import torch
from distribution_cases import B, C, H, K, W, mixture, random, table

from trilemma.distributions.bernoulli import Bernoulli
from trilemma.distributions.discretised_gaussian import DiscretisedGaussian
from trilemma.distributions.levels import level_index, level_value
from trilemma.distributions.logistic import DiscretisedLogistic
from trilemma.errors import UserError
from trilemma.processes.gaussian.bound import discretised_log_prob
from trilemma.processes.noise import Noise

KINDS = [DiscretisedLogistic, DiscretisedGaussian]


@pytest.mark.parametrize("num_levels", [2, 3, 16, 256])
def test_levels_are_those_of_integers(num_levels):
    index = torch.arange(num_levels)
    x = level_value(index, num_levels, torch.float32)
    assert x[0] == -1
    assert x[-1] == 1
    assert torch.equal(level_index(x, num_levels), index)
    assert torch.equal(level_index(index / (num_levels - 1) * 2 - 1, num_levels), index)
    assert level_index(torch.tensor([-7.0, 7.0]), num_levels).tolist() == [0, num_levels - 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_levels", [2, 256])
def test_probabilities_of_many_levels_sum_to_one_at_any_scale(kind, num_levels):
    mean = torch.tensor([0.0, 0.003, 0.99, -1.0, 1.3, 20.0], dtype=torch.float64)
    log_scale = torch.tensor([-16.0, -7.0, -3.0, 0.0, 3.0, 14.0, 30.0], dtype=torch.float64)
    total = table(kind(mean[:, None].expand(6, 7), log_scale.expand(6, 7), num_levels)).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_a_logistic_level_is_a_difference_of_sigmoids():
    mean, log_scale = random(50, seed=1), 0.5 * random(50, seed=2)
    x = level_value(torch.arange(50) % K, K, torch.float64)
    cdf = [torch.sigmoid((x + side / (K - 1) - mean) / log_scale.exp()) for side in (-1, 1)]
    p = torch.where(x == 1, 1.0, cdf[1]) - torch.where(x == -1, 0.0, cdf[0])
    torch.testing.assert_close(DiscretisedLogistic(mean, log_scale, K).log_prob(x).exp(), p, rtol=1e-10, atol=1e-12)


def test_the_gaussian_is_the_last_term_of_a_diffusion_bound():
    x = level_value(torch.randint(256, (40, 50), generator=torch.Generator().manual_seed(0)), 256, torch.float64)
    mean, log_std = random(40, 50), -3 + random(40, 50, seed=1)
    ours = DiscretisedGaussian(mean, log_std, 256).log_prob(x)
    torch.testing.assert_close(ours, discretised_log_prob(x, mean, log_std, 2 / 255), rtol=1e-9, atol=1e-9)


def test_a_wide_gaussian_is_a_density_times_a_width():
    """Either side of where the formula changes."""
    x = level_value(torch.arange(1, 255), 256, torch.float64)
    for std in (600.0, 783.0, 785.0, 1e6):
        log_std = torch.tensor(std, dtype=torch.float64).log().expand(254)
        mean = 2 * std * random(254)
        expected = torch.distributions.Normal(mean, log_std.exp()).log_prob(x) + math.log(2 / 255)
        torch.testing.assert_close(DiscretisedGaussian(mean, log_std, 256).log_prob(x), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_parameters_are_finite_and_so_are_their_gradients(kind, dtype):
    scales = torch.tensor([1e-7, 1e-3, 1.0, 1e5], dtype=dtype).log()
    means = torch.tensor([-1e6, -1.5, -1.0, 0.0, 1.0, 40.0, 1e6], dtype=dtype)
    mean, log_scale = (x.clone().requires_grad_() for x in torch.broadcast_tensors(means[:, None], scales))
    distribution = kind(mean, log_scale, 256)
    for x in (-1.0, -0.5, 0.0, 1.0):
        log_prob = distribution.log_prob(torch.full((7, 4), x))
        assert log_prob.dtype == dtype
        assert log_prob.isfinite().all()
        assert (log_prob <= 0).all()
        for grad in torch.autograd.grad(log_prob.sum(), (mean, log_scale)):
            assert grad.isfinite().all()
    assert distribution.mean.isfinite().all()
    drawn = distribution.sample(Noise(0, torch.arange(7)))
    assert drawn.abs().max() <= 1
    assert torch.equal(drawn[0, :3], -torch.ones(3, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    mean, log_scale = random(6, 20).requires_grad_(), (-1 + random(6, 20, seed=1)).requires_grad_()
    x = level_value(torch.randint(K, (6, 20), generator=torch.Generator().manual_seed(0)), K, torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: kind(m, s, K).log_prob(x), (mean, log_scale), fast_mode=True)


@pytest.mark.parametrize("distance", [10.0, 1e4, 1e9, 1e14])
def test_the_gradient_of_a_gaussian_far_out_points_home(distance):
    """There the mass of a bin is the density at its near edge: the gradient is that of -z^2 / 2, and 1 / z more."""
    mean, std = torch.zeros(1, dtype=torch.float64, requires_grad=True), 1 / (distance * 255)
    log_std = torch.tensor(std, dtype=torch.float64).log()
    log_prob = DiscretisedGaussian(mean, log_std, 256).log_prob(level_value(torch.tensor([129]), 256, torch.float64))
    (grad,) = torch.autograd.grad(log_prob.sum(), mean)
    z = 2 * distance
    assert float(grad) == pytest.approx(z / std, rel=2 / z)


@pytest.mark.parametrize("kind", KINDS)
def test_the_temperature_multiplies_the_scale(kind):
    mean, log_scale = random(B, C, H, W), random(B, C, H, W, seed=1)
    warm, other = kind(mean, log_scale, K).tempered(2.0), kind(mean, log_scale + torch.tensor(2.0).double().log(), K)
    torch.testing.assert_close(table(warm), table(other))


def test_a_pixel_is_on_above_the_middle():
    logits = torch.tensor([[0.3, 0.3, 0.3, 0.3]])
    on, off = logits.sigmoid().log()[0, 0], (-logits).sigmoid().log()[0, 0]
    image, bits = Bernoulli(logits), Bernoulli(logits, off=0.0)
    torch.testing.assert_close(
        image.log_prob(torch.tensor([[-1.0, 0.0, 0.01, 1.0]]))[0], torch.stack([off, off, on, on])
    )
    torch.testing.assert_close(bits.log_prob(torch.tensor([[0.0, 0.5, 0.51, 1.0]]))[0], torch.stack([off, off, on, on]))


def test_one_level_is_refused():
    for make in (lambda: DiscretisedLogistic(torch.zeros(1), torch.zeros(1), 1), lambda: mixture(num_levels=1)):
        with pytest.raises(UserError, match="num_levels=1"):
            make()
