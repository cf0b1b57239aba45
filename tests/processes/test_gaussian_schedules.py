"""Schedules of Gaussian processes against their definitions, in float64."""

import math

import pytest
import torch

from trilemma.errors import UserError
from trilemma.processes.gaussian.schedules import EDM, VPSDE, CosineBeta, LinearBeta, LinearPath, ScaledLinearBeta

CHAINS = [LinearBeta(), LinearBeta(100), ScaledLinearBeta(), CosineBeta(), CosineBeta(4000)]
ENDING = [LinearBeta(zero_terminal_snr=True), CosineBeta(50, zero_terminal_snr=True), LinearPath()]
SCHEDULES = [*CHAINS, VPSDE(), EDM(), *ENDING]
grid = torch.linspace(0, 1, 1001, dtype=torch.float64)


def name(schedule):
    return f"{type(schedule).__name__}{schedule.num_steps or ''}{'z' if float(schedule.alpha(1.0)) == 0 else ''}"


every = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


@every
def test_data_are_untouched_at_0_and_the_noise_rises(schedule):
    assert float(schedule.alpha(0.0)) == 1.0
    assert float(schedule.sigma(0.0)) == 0.0
    assert (schedule.sigma(grid).diff() > 0).all()
    assert (schedule.log_snr(grid[1:]).diff() < 0).all()


@pytest.mark.parametrize("schedule", [*CHAINS, VPSDE(), *ENDING[:2]], ids=name)
def test_variance_is_preserved(schedule):
    total = schedule.alpha(grid).square() + schedule.sigma(grid).square()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-15)


@pytest.mark.parametrize("num_steps", [100, 1000])
def test_linear_betas_are_those_of_the_paper(num_steps):
    """alpha_bar as the plain product; betas from 1e-4 to 0.02, times 1000 / T."""
    beta = torch.linspace(1e-4, 0.02, num_steps, dtype=torch.float64) * 1000 / num_steps
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    torch.testing.assert_close(LinearBeta(num_steps).alpha(t).square(), alpha_bar, rtol=1e-13, atol=0)


def test_cosine_betas_are_those_of_the_paper_and_clipped():
    t = torch.arange(1001, dtype=torch.float64) / 1000
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    ours = CosineBeta().alpha(t).square()
    torch.testing.assert_close(ours[:-1], (f / f[0])[:-1], rtol=1e-9, atol=0)
    assert float(1 - ours[-1] / ours[-2]) == pytest.approx(0.999)


def test_chains_against_diffusers():
    from diffusers import DDPMScheduler

    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    for ours, options in (
        (LinearBeta(), {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (ScaledLinearBeta(), {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}),
        (CosineBeta(), {"beta_schedule": "squaredcos_cap_v2"}),
        (
            LinearBeta(zero_terminal_snr=True),
            {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True},
        ),
    ):
        theirs = DDPMScheduler(num_train_timesteps=1000, **options).alphas_cumprod.double()
        torch.testing.assert_close(ours.alpha(t).square(), theirs, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ENDING, ids=name)
def test_nothing_of_the_data_is_left_at_1(schedule):
    assert float(schedule.alpha(1.0)) == 0.0
    assert float(schedule.log_snr(1.0)) == -math.inf
    assert schedule.path == "flow"


def test_zero_terminal_snr_leaves_the_first_step_as_it_is():
    assert float(LinearBeta(zero_terminal_snr=True).alpha(0.001)) == pytest.approx(float(LinearBeta().alpha(0.001)))


@every
def test_log_snr_agrees_with_alpha_and_sigma(schedule):
    t = grid[1:-1]
    expected = 2 * (schedule.alpha(t).log() - schedule.sigma(t).log())
    torch.testing.assert_close(schedule.log_snr(t), expected, rtol=1e-9, atol=1e-9)


@every
def test_time_of_log_snr_is_the_inverse(schedule):
    t = grid[1:-1]
    torch.testing.assert_close(schedule.time_of_log_snr(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


@every
def test_derivatives_are_those_of_finite_differences(schedule):
    t = grid[20:-20] + 0.37e-3  # off every grid
    h = 1e-7
    for function, slope in zip((schedule.alpha, schedule.sigma), schedule.derivatives(t), strict=True):
        numeric = (function(t + h) - function(t - h)) / (2 * h)
        torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-6)


@every
def test_a_number_a_scalar_and_a_batch_agree(schedule):
    times = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    for function in (schedule.alpha, schedule.sigma, schedule.log_snr):
        assert function(0.5).shape == ()
        assert torch.equal(function(times)[1], function(0.5))
        assert torch.equal(function(times[2]), function(1.0))


def test_vp_sde_is_the_integral_of_its_beta():
    t = torch.linspace(0, 1, 200001, dtype=torch.float64)
    integral = torch.trapezoid(0.1 + t * 19.9, t)
    assert float(VPSDE().alpha(1.0)) == pytest.approx(math.exp(-0.5 * float(integral)), rel=1e-9)


def test_edm_spaces_sigma_by_its_rho():
    schedule = EDM(0.002, 80.0, rho=7.0)
    assert float(schedule.sigma(1.0)) == 80.0
    assert schedule.prior_std == 80.0
    assert float(schedule.sigma(schedule.min_time)) == pytest.approx(0.002)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LinearBeta(10),
        lambda: LinearBeta(1),
        lambda: LinearBeta(1000, start=-0.1),
        lambda: ScaledLinearBeta(1000, start=0.5, end=0.1),
        lambda: CosineBeta(1),
        lambda: CosineBeta(10, max_beta=1.5),
        lambda: VPSDE(1.0, 0.5),
        lambda: EDM(1.0, 0.5),
    ],
)
def test_what_makes_no_schedule_is_refused_in_one_line(build):
    with pytest.raises(UserError, match="schedule"):
        build()
