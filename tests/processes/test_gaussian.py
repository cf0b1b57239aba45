"""Gaussian processes: identities in float64 against brute force and the plain formulas of the papers."""

import pytest
import torch

from trilemma.errors import UserError
from trilemma.processes.gaussian.parameterization import X0, EDMPreconditioning, Eps, Score, V, Velocity
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, VPSDE, CosineBeta, LinearBeta, LinearPath, ScaledLinearBeta
from trilemma.processes.noise import TorchNoise

SCHEDULES = [
    LinearBeta(),
    CosineBeta(100),
    ScaledLinearBeta(),
    VPSDE(),
    EDM(),
    LinearPath(),
    LinearBeta(zero_terminal_snr=True),
]
PAIRS = [(0.2, 0.7), (0.001, 0.002), (0.0, 0.001), (0.5, 0.501), (0.0, 1.0), (0.313, 0.9)]
every = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
at = pytest.mark.parametrize(("s", "t"), PAIRS)


def tensors(seed=0, shape=(3, 2, 4, 4)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))


@every
@at
def test_two_steps_compose_to_one(schedule, s, t):
    """q(xt|x0) is q(xs|x0) carried by q(xt|xs)."""
    process = GaussianProcess(schedule)
    if s == 0.0 or t == 1.0:
        return
    alpha_ts, var_ts = process.transition(s, t)
    torch.testing.assert_close(alpha_ts * process.alpha(s), process.alpha(t))
    torch.testing.assert_close(alpha_ts**2 * process.sigma(s) ** 2 + var_ts, process.sigma(t) ** 2)


@every
@at
def test_the_posterior_is_bayes_rule(schedule, s, t):
    """Precisions add, and so do precision-weighted means: q(xs|xt,x0) from q(xt|xs) and q(xs|x0)."""
    process = GaussianProcess(schedule)
    x0, xt, _ = tensors()
    mean, var = process.posterior(x0, xt, s, t)
    if s == 0.0:
        torch.testing.assert_close(mean, x0)
        assert float(var) == 0.0
        return
    alpha_ts, var_ts = process.transition(s, t)
    prior_var = process.sigma(s) ** 2
    precision = alpha_ts**2 / var_ts + 1 / prior_var
    torch.testing.assert_close(var, 1 / precision, rtol=1e-6, atol=0)
    expected = (alpha_ts / var_ts * xt + process.alpha(s) / prior_var * x0) / precision
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-8)


@every
@at
def test_the_posterior_marginalises_to_the_marginal(schedule, s, t):
    """E over xt of q(xs|xt,x0) is q(xs|x0): means and variances."""
    process = GaussianProcess(schedule)
    c0, ct, var = process.posterior_coefficients(s, t)
    torch.testing.assert_close(c0 + ct * process.alpha(t), process.alpha(s))
    torch.testing.assert_close(ct**2 * process.sigma(t) ** 2 + var, process.sigma(s) ** 2)


@pytest.mark.parametrize("schedule", [LinearBeta(), CosineBeta(), CosineBeta(4000)], ids=["linear", "cosine", "4000"])
def test_neighbours_on_a_chain_have_the_coefficients_of_the_paper(schedule):
    """beta, beta tilde, c1 and c2 of Ho et al. 2020, equation 7, from the betas alone."""
    process, T = GaussianProcess(schedule), schedule.num_steps
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    s = (t * T - 1).round() / T
    alpha_bar = process.alpha(t) ** 2
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    beta = 1 - alpha_bar / previous
    c0, ct, var = process.posterior_coefficients(s, t)
    torch.testing.assert_close(process.transition(s, t)[1], beta, rtol=1e-8, atol=0)
    torch.testing.assert_close(var, beta * (1 - previous) / (1 - alpha_bar), rtol=1e-8, atol=1e-18)
    torch.testing.assert_close(c0, beta * previous.sqrt() / (1 - alpha_bar), rtol=1e-8, atol=0)
    torch.testing.assert_close(ct, (1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar), rtol=1e-8, atol=1e-16)
    torch.testing.assert_close(c0 + ct * alpha_bar.sqrt(), previous.sqrt())
    torch.testing.assert_close(1 / var[1:], ((1 - beta) / beta + 1 / (1 - previous))[1:], rtol=1e-8, atol=0)


def test_the_variance_range_is_that_of_the_released_code():
    """Log beta tilde, whose first entry is that of the second step, and log beta."""
    process, T = GaussianProcess(LinearBeta()), 1000
    t = torch.arange(1, T + 1, dtype=torch.float64) / T
    s = (t * T - 1).round() / T
    small, large = process.log_variance_range(s, t)
    beta_tilde = process.posterior_coefficients(s, t)[2]
    torch.testing.assert_close(small.exp()[1:], beta_tilde[1:])
    torch.testing.assert_close(small.exp()[0], beta_tilde[1])
    torch.testing.assert_close(large.exp(), process.transition(s, t)[1])
    assert (small <= large + 1e-12).all()


@every
@pytest.mark.parametrize(
    "meaning", [Eps(), X0(), V(), Velocity(), Score(), EDMPreconditioning(0.5)], ids=lambda m: type(m).__name__
)
def test_every_parameterisation_gives_the_data_back(schedule, meaning):
    process = GaussianProcess(schedule)
    x0, eps, _ = tensors()
    for t in (0.01, 0.4, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)):
        xt = process.perturb(x0, t, eps)
        found = meaning.to_x0(process, meaning.target(process, x0, eps, t), xt, t)
        torch.testing.assert_close(found, x0, rtol=1e-7, atol=1e-7)


@every
def test_noise_and_score_are_conversions_of_the_data(schedule):
    process = GaussianProcess(schedule)
    x0, eps, _ = tensors()
    t = 0.3
    xt = process.perturb(x0, t, eps)
    torch.testing.assert_close(process.eps_from_x0(x0, xt, t), eps, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(process.x0_from_eps(eps, xt, t), x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(process.score_from_x0(x0, xt, t), -eps / process.sigma(t), rtol=1e-6, atol=1e-6)


def test_the_score_is_the_gradient_of_the_log_density():
    process = GaussianProcess(CosineBeta())
    x0, xt, _ = tensors()
    xt = xt.requires_grad_()
    mean, std = process.marginal(x0, 0.4)
    torch.distributions.Normal(mean, std).log_prob(xt).sum().backward()
    torch.testing.assert_close(process.score_from_x0(x0, xt.detach(), 0.4), xt.grad)


def test_v_and_velocity_are_those_of_their_papers():
    x0, eps, _ = tensors()
    process = GaussianProcess(CosineBeta())
    expected = process.alpha(0.3) * eps - process.sigma(0.3) * x0
    torch.testing.assert_close(V().target(process, x0, eps, 0.3), expected)
    torch.testing.assert_close(Velocity().target(GaussianProcess(LinearPath()), x0, eps, 0.3), eps - x0)


def test_velocity_is_the_slope_of_the_path():
    x0, eps, _ = tensors()
    for schedule in (VPSDE(), EDM(), LinearPath()):
        process, h = GaussianProcess(schedule), 1e-6
        numeric = (process.perturb(x0, 0.4 + h, eps) - process.perturb(x0, 0.4 - h, eps)) / (2 * h)
        torch.testing.assert_close(Velocity().target(process, x0, eps, 0.4), numeric, rtol=1e-6, atol=1e-6)


def test_edm_preconditioning_is_that_of_the_paper():
    """D = c_skip x + c_out F(c_in x) with the coefficients of Karras et al. 2022, table 1."""
    process, data = GaussianProcess(EDM()), 0.5
    meaning = EDMPreconditioning(data)
    F, x, _ = tensors()
    for sigma in (0.01, 0.7, 30.0):
        t = process.schedule.time_of_log_snr(-2 * torch.tensor(sigma, dtype=torch.float64).log())
        total = sigma**2 + data**2
        D = data**2 / total * x + sigma * data / total**0.5 * F
        torch.testing.assert_close(meaning.to_x0(process, F, x, t), D)
        torch.testing.assert_close(float(meaning.scale_in(process, t)), total**-0.5)


def test_edm_preconditioning_is_the_identity_without_noise():
    process = GaussianProcess(EDM())
    F, x, _ = tensors()
    torch.testing.assert_close(EDMPreconditioning(0.5).to_x0(process, F, x, 1e-3), x, rtol=0, atol=1e-12)


@every
def test_edm_preconditioning_has_inputs_and_targets_of_unit_variance(schedule):
    process, data = GaussianProcess(schedule), 0.5
    meaning = EDMPreconditioning(data)
    for t in (0.01, 0.3, 0.9):
        a, b = meaning.coefficients(process, t)
        torch.testing.assert_close(a**2 * data**2 + b**2, torch.ones((), dtype=torch.float64))
        var = process.alpha(t) ** 2 * data**2 + process.sigma(t) ** 2
        torch.testing.assert_close(meaning.scale_in(process, t) ** 2 * var, torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("schedule", [LinearPath(), LinearBeta(zero_terminal_snr=True)], ids=["flow", "zero"])
def test_noise_cannot_be_predicted_where_it_is_all_there_is(schedule):
    process = GaussianProcess(schedule)
    for meaning in (Eps(), Score()):
        with pytest.raises(UserError, match="take v, velocity or x0"):
            meaning.check(process)
    for meaning in (V(), X0(), Velocity(), EDMPreconditioning(0.5)):
        meaning.check(process)


@every
def test_the_prior_term_is_the_divergence_of_two_normal_laws(schedule):
    process = GaussianProcess(schedule)
    x0, _, _ = tensors()
    mean, std = process.marginal(x0, 1.0)
    q = torch.distributions.Normal(mean, std.expand_as(mean))
    p = torch.distributions.Normal(torch.zeros_like(mean), process.schedule.prior_std)
    torch.testing.assert_close(process.prior_kl(x0), torch.distributions.kl_divergence(q, p), rtol=1e-6, atol=1e-9)


def test_draws_have_the_marginal_moments_and_a_time_an_image():
    process = GaussianProcess(LinearBeta())
    x0 = torch.tensor([0.5, -0.25], dtype=torch.float64)[:, None].expand(2, 100_000)
    t = torch.tensor([0.1, 0.6], dtype=torch.float64)
    drawn = process.sample(x0, t, TorchNoise(torch.Generator().manual_seed(0)))
    mean, std = process.marginal(x0[:, 0], t)
    assert ((drawn.mean(1) - mean).abs() < 5 * std / 100_000**0.5).all()
    assert ((drawn.std(1) / std - 1).abs() < 0.02).all()


def test_float32_states_stay_float32():
    process = GaussianProcess(CosineBeta())
    x0 = torch.zeros(2, 1, 4, 4)
    t = torch.tensor([0.5, 0.6], dtype=torch.float64)
    assert process.perturb(x0, t, x0).dtype == torch.float32
    assert process.perturb(x0, 0.5, x0).dtype == torch.float32
    assert process.posterior(x0, x0, t - 0.1, t)[0].dtype == torch.float32
