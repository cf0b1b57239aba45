"""Coupled mixtures of logistics against a loop over pixels, components and channels."""

import itertools
import math

import pytest
import torch
from distribution_cases import B, H, K, M, W, mixture, random

from drawn import assert_drawn_from
from trilemma.distributions.levels import level_index, level_value
from trilemma.distributions.logistic_mixture import DiscretisedLogisticMixture
from trilemma.processes.noise import Noise


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def by_hand(d, x, b, h, w):
    """log p of a pixel of values x, a list of C numbers, written out."""
    half = 1 / (d.num_levels - 1)
    weights = d.logits[b, :, h, w].softmax(0).tolist()
    total = 0.0
    for m, weight in enumerate(weights):
        p, pairs = weight, itertools.count()
        for c, value in enumerate(x):
            mean, scale = float(d.means[b, m, c, h, w]), math.exp(float(d.log_scales[b, m, c, h, w]))
            for before in x[:c]:
                mean += float(d.coefficients[b, m, next(pairs), h, w]) * before
            upper = 1.0 if value > 1 - half else sigmoid((value + half - mean) / scale)
            lower = 0.0 if value < -1 + half else sigmoid((value - half - mean) / scale)
            p *= upper - lower
        total += p
    return math.log(total)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_pixel_is_scored_as_written_out(channels):
    d = mixture(channels=channels)
    index = torch.randint(K, (B, channels, H, W), generator=torch.Generator().manual_seed(5))
    x = level_value(index, K, torch.float64)
    ours = d.log_prob(x)
    assert ours.shape == x.shape
    for b, h, w in itertools.product(range(B), range(H), range(W)):
        assert float(ours[b, :, h, w].sum()) == pytest.approx(by_hand(d, x[b, :, h, w].tolist(), b, h, w), rel=1e-10)


def pixels(num_levels, channels):
    """Every pixel there is, [N, C]."""
    levels = level_value(torch.arange(num_levels), num_levels, torch.float64)
    return torch.cartesian_prod(*[levels] * channels)


def test_channels_are_conditionals_whose_product_sums_to_one():
    d, every = mixture(num_levels=4, channels=3), pixels(4, 3)
    log_p = torch.stack([d.log_prob(x[None, :, None, None].expand(B, 3, H, W)) for x in every])
    one = torch.ones(B, H, W, dtype=torch.float64)
    torch.testing.assert_close(log_p.sum(2).exp().sum(0), one, rtol=0, atol=1e-12)
    of_channel = log_p.view(4, 4, 4, B, 3, H, W).exp()
    torch.testing.assert_close(of_channel[:, 0, 0, :, 0].sum(0), one, rtol=0, atol=1e-12)
    for r, g in itertools.product(range(4), range(4)):
        torch.testing.assert_close(of_channel[r, :, 0, :, 1].sum(0), one, rtol=0, atol=1e-12)
        torch.testing.assert_close(of_channel[r, g, :, :, 2].sum(0), one, rtol=0, atol=1e-12)


def test_pixels_are_drawn_with_the_probabilities_that_are_scored():
    num, every = 8000, pixels(3, 3)
    one = mixture(num_levels=3, channels=3, num=1)
    log_p = torch.stack([one.log_prob(x[None, :, None, None].expand(1, 3, H, W)).sum(1)[0] for x in every])
    parts = [x.expand(num, *x.shape[1:]) for x in (one.logits, one.means, one.log_scales, one.coefficients)]
    d = DiscretisedLogisticMixture(*parts, 3)
    drawn = d.sample(Noise(4, torch.arange(num)))
    index = level_index(drawn, 3)
    assert torch.equal(level_value(index, 3, torch.float64), drawn)
    number = (index * torch.tensor([9, 3, 1])[:, None, None]).sum(1)
    for h, w in itertools.product(range(H), range(W)):
        assert_drawn_from(number[:, h, w], log_p[:, h, w].exp())
    alone = DiscretisedLogisticMixture(one.logits, one.means, one.log_scales, one.coefficients, 3)
    assert torch.equal(alone.sample(Noise(4, torch.tensor([17]))), drawn[17:18])


def exact_mean(d, num_levels):
    every = pixels(num_levels, 3)
    log_p = torch.stack([d.log_prob(x[None, :, None, None].expand(B, 3, H, W)).sum(1) for x in every])
    return torch.einsum("nbhw,nc->bchw", log_p.exp(), every)


def test_the_mean_is_that_over_pixels():
    # Uncoupled channels, and coupled ones whose levels do not reach the edges: by symmetry nothing is rounded away.
    loose = mixture(num_levels=6, channels=3, coupling=0.0)
    torch.testing.assert_close(loose.mean, exact_mean(loose, 6), rtol=0, atol=1e-12)
    shape = (B, M, 3, H, W)
    inner = DiscretisedLogisticMixture(
        random(B, M, H, W),
        0.1 * random(*shape, seed=1),
        torch.full(shape, -3.0).double(),
        0.3 * random(*shape).tanh(),
        16,
    )
    torch.testing.assert_close(inner.mean, exact_mean(inner, 16), rtol=0, atol=2e-3)
    torch.testing.assert_close(inner.mean[:, 0], exact_mean(inner, 16)[:, 0], rtol=0, atol=1e-12)


def test_gradients():
    d = mixture(channels=3)
    x = level_value(torch.randint(K, (B, 3, H, W), generator=torch.Generator().manual_seed(5)), K, torch.float64)
    leaves = [y.clone().requires_grad_() for y in (d.logits, d.means, d.log_scales, d.coefficients)]
    assert torch.autograd.gradcheck(
        lambda *parts: DiscretisedLogisticMixture(*parts, K).log_prob(x), leaves, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_components_are_finite(dtype):
    shape = (1, M, 3, 1, 1)
    scales = torch.tensor([1e-7, 1e-3, 1.0, 1e5], dtype=dtype).log().view(1, M, 1, 1, 1).expand(shape)
    means = torch.tensor([0.0, -1e6, 50.0, 1e6], dtype=dtype).view(1, M, 1, 1, 1).expand(shape)
    logits = torch.tensor([0.0, 80.0, -80.0, 5.0], dtype=dtype).view(1, M, 1, 1)
    leaves = [y.clone().requires_grad_() for y in (logits, means, scales, torch.ones(shape, dtype=dtype))]
    d = DiscretisedLogisticMixture(*leaves, 256)
    for value in (-1.0, 0.2, 1.0):
        log_p = d.log_prob(torch.full((1, 3, 1, 1), value))
        assert log_p.isfinite().all()
        assert all(grad.isfinite().all() for grad in torch.autograd.grad(log_p.sum(), leaves))
    assert d.mean.isfinite().all()
    assert d.sample(Noise(0, torch.arange(1))).abs().max() <= 1


def test_the_temperature_goes_to_the_weights_and_the_scales():
    d = mixture(channels=3)
    cold = d.tempered(0.5)
    torch.testing.assert_close(cold.logits, 2 * d.logits)
    torch.testing.assert_close(cold.log_scales.exp(), 0.5 * d.log_scales.exp())
    assert cold.means is d.means


def test_parts_that_do_not_fit_are_refused():
    d = mixture(channels=3)
    with pytest.raises(ValueError, match="3 coefficients"):
        DiscretisedLogisticMixture(d.logits, d.means, d.log_scales, None, K)
    with pytest.raises(ValueError, match="components or pixels"):
        DiscretisedLogisticMixture(d.logits[:, 1:], d.means, d.log_scales, d.coefficients, K)
