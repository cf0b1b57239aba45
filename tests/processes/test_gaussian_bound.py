"""Terms of the variational bound of a Gaussian chain against closed forms and enumeration, in float64."""

import math

import pytest
import torch

from trilemma.processes.gaussian.bound import discretised_log_prob, gaussian_kl, interpolated_log_variance, step_terms
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, VPSDE, CosineBeta, LinearBeta, LinearPath

WIDTH = 2 / 255
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
PROCESS = GaussianProcess(LinearBeta())


@pytest.mark.parametrize("mean", [-3.0, -1.0, -0.2, 0.0, 0.999, 1.7])
@pytest.mark.parametrize("std", [1e-3, 0.004, 0.01, 0.3, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_probabilities_of_all_levels_sum_to_one(mean, std, dtype):
    log_std = torch.tensor(std, dtype=dtype).log()
    log_p = discretised_log_prob(LEVELS.to(dtype), torch.tensor(mean, dtype=dtype), log_std, WIDTH)
    assert float(log_p.double().exp().sum()) == pytest.approx(1.0, abs=1e-9 if dtype == torch.float64 else 2e-4)


def test_each_level_holds_the_mass_of_its_bin():
    normal = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.05)
    expected = normal.cdf(LEVELS + WIDTH / 2) - normal.cdf(LEVELS - WIDTH / 2)
    expected[0], expected[-1] = normal.cdf(LEVELS[0] + WIDTH / 2), 1 - normal.cdf(LEVELS[-1] - WIDTH / 2)
    found = discretised_log_prob(LEVELS, normal.mean, normal.stddev.log(), WIDTH).exp()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_far_levels_keep_their_finite_price_and_gradient():
    """The mean is 100 deviations away: a difference of CDFs would be log 0."""
    mean = torch.tensor(0.9, requires_grad=True)
    log_std = torch.tensor(math.log(0.01), requires_grad=True)
    log_p = discretised_log_prob(torch.tensor(-0.1), mean, log_std, WIDTH)
    log_p.backward()
    # log density at the near edge of the bin, to leading order
    assert float(log_p.detach()) == pytest.approx(-0.5 * ((1.0 - WIDTH / 2) / 0.01) ** 2, rel=2e-3)
    assert mean.grad.isfinite()
    assert log_std.grad.isfinite()


def test_the_divergence_is_that_of_two_normal_laws():
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = torch.randn(4, 50, generator=generator, dtype=torch.float64)
    q, p = torch.distributions.Normal(a, (0.5 * b).exp()), torch.distributions.Normal(c, (0.5 * d).exp())
    torch.testing.assert_close(gaussian_kl(a, b, c, d), torch.distributions.kl_divergence(q, p))


def test_a_model_that_knows_the_data_pays_nothing_but_the_last_step():
    x0 = LEVELS[torch.randint(256, (4, 1, 3, 3), generator=torch.Generator().manual_seed(1))]
    t = torch.tensor([0.001, 0.002, 0.5, 1.0], dtype=torch.float64)
    s = ((t * 1000).round() - 1) / 1000
    xt = PROCESS.perturb(x0, t, torch.ones_like(x0))
    log_variance = PROCESS.log_variance_range(s, t)[0].view(-1, 1, 1, 1)
    nats = step_terms(PROCESS, x0, xt, s, t, x0, log_variance, bin_width=WIDTH)
    torch.testing.assert_close(nats[1:], torch.zeros_like(nats[1:]), rtol=0, atol=1e-9)
    # 0.0074 of noise against half a bin of 0.0039: the level itself has 40 % of the mass, or more at the ends
    assert ((nats[0] > 0) & (nats[0] < 1.0)).all()


def test_gradients_are_finite_at_both_ends_of_the_chain():
    x0 = torch.zeros(2, 1, 2, 2)
    t, s = torch.tensor([0.001, 1.0], dtype=torch.float64), torch.tensor([0.0, 0.999], dtype=torch.float64)
    xt = PROCESS.perturb(x0, t, torch.ones_like(x0))
    mean = torch.full_like(x0, 0.3).requires_grad_()
    fraction = torch.full_like(x0, 0.5).requires_grad_()
    log_variance = interpolated_log_variance(PROCESS, fraction, s, t)
    step_terms(PROCESS, x0, xt, s, t, mean, log_variance, bin_width=WIDTH).sum().backward()
    assert mean.grad.isfinite().all()
    assert fraction.grad.isfinite().all()
    assert (mean.grad != 0).all()


def test_a_learned_variance_lies_between_its_ends_in_logarithms():
    t = torch.tensor([0.3], dtype=torch.float64)
    small, large = PROCESS.log_variance_range(t - 0.001, t)
    for fraction, expected in ((0.0, small), (1.0, large), (0.5, (small + large) / 2)):
        found = interpolated_log_variance(PROCESS, torch.full((1, 1), fraction, dtype=torch.float64), t - 0.001, t)
        torch.testing.assert_close(found.view(1), expected)


def bound_of_two_levels(process, num_draws, variance):
    """E of the whole bound in nats for data that are -1 or 1 with equal odds, under the exact posterior mean tanh."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.where(torch.rand(num_draws, 1, generator=generator, dtype=torch.float64) < 0.5, -1.0, 1.0).double()
    total = process.prior_kl(x0).mean()
    for i in range(1, process.num_steps + 1):
        t = torch.full((num_draws,), i / process.num_steps, dtype=torch.float64)
        s = torch.full_like(t, (i - 1) / process.num_steps)
        xt = process.perturb(x0, t, torch.randn(num_draws, 1, generator=generator, dtype=torch.float64))
        mean = torch.tanh(process.alpha(t)[:, None] * xt / process.sigma(t)[:, None] ** 2)
        log_variance = process.log_variance_range(s, t)[variance][:, None]
        total = total + step_terms(process, x0, xt, s, t, mean, log_variance, bin_width=2.0).mean()
    return float(total)


def test_the_bound_lies_above_the_entropy_and_falls_towards_it_with_more_steps():
    """Two levels cost ln 2 at best; a finite chain pays for what a Gaussian step cannot say."""
    few, more, many = (bound_of_two_levels(GaussianProcess(CosineBeta(T)), 20_000, 0) for T in (10, 40, 200))
    assert few > more > many > math.log(2) - 0.02
    assert many < math.log(2) + 0.1


def bits_of_exact_model(process, first, dtype, num_steps=300, num=2000):
    """Bits per dimension of levels from N(0.1, 0.3^2), by the exact denoiser of that law."""
    generator = torch.Generator().manual_seed(0)
    x0 = (0.1 + 0.3 * torch.randn(num, 1, dtype=torch.float64, generator=generator)).clamp(-1, 1)
    x0 = (((x0 + 1) * 127.5).round() / 127.5 - 1).to(dtype)
    nats = process.prior_kl(x0).mean()
    for i in range(1, num_steps + 1):
        step = torch.full((num,), i)
        t, s = process.grid(step, num_steps, first=first), process.grid(step - 1, num_steps, first=first)
        xt = process.perturb(x0, t, torch.randn(num, 1, dtype=torch.float64, generator=generator).to(dtype))
        alpha, sigma = process.alpha(t)[0], process.sigma(t)[0]
        gain = (0.09 * alpha / (0.09 * alpha**2 + sigma**2)).to(dtype)
        mean = 0.1 + gain * (xt - (0.1 * alpha).to(dtype))
        variance = process.log_variance_range(s, t)[1][:, None].to(dtype)
        nats = nats + step_terms(process, x0, xt, s, t, mean, variance, bin_width=WIDTH).mean()
    return float(nats) / math.log(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("schedule", [EDM(), LinearPath(), VPSDE(), CosineBeta(300)], ids=lambda s: type(s).__name__)
def test_an_exact_model_of_any_process_pays_the_entropy(schedule, dtype):
    """7.30 bits: log2 of 0.3 sqrt(2 pi e) over the width of a level. A grid down to t = 0.001 of EDM gave 62."""
    process = GaussianProcess(schedule)
    first = max(process.min_time, process.time_of_noise(WIDTH / 2))
    entropy = math.log2(0.3 * math.sqrt(2 * math.pi * math.e) / WIDTH)
    assert bits_of_exact_model(process, first, dtype) == pytest.approx(entropy, abs=0.25)


@pytest.mark.parametrize("schedule", [EDM(), LinearPath(), VPSDE(), CosineBeta(10)], ids=lambda s: type(s).__name__)
def test_no_time_of_a_grid_lies_below_the_least_that_is_walked(schedule):
    process = GaussianProcess(schedule)
    times = process.grid(torch.arange(11), 10)
    assert times[0] == 0
    assert times[1] == pytest.approx(schedule.min_time, abs=1e-15)
    assert times[-1] == pytest.approx(1.0, abs=1e-15)
    assert bool((times.diff() > 0).all())
