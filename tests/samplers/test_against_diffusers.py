"""Against the schedulers of diffusers, an independent implementation: the same network, noise and grid, the same images."""

import pytest
import torch

from trilemma.conditions.base import Condition
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import CosineBeta, LinearBeta, ScaledLinearBeta
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.guidance import Guidance

pytest.importorskip("diffusers")
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

T = 1000
SHAPE = (4, 2, 2, 2)
INDICES = torch.arange(4)


def eps_of(xt, t):
    """Noise that a network might see in xt at t in (0, 1], float64."""
    mixed = 0.8 * xt + 0.3 * xt.flip(1) + torch.sin(3 * t)
    return torch.tanh(mixed) + 0.4 * xt


def ours(process, sampler, *, bound=None):
    def denoiser(xt, t, condition, noise):
        return Prediction(x0=process.x0_from_eps(eps_of(xt, t.view(-1, 1, 1, 1)), xt, t), bound=bound)

    return sampler(
        denoiser, process, SHAPE, condition=Condition(4), guidance=Guidance(), noise=Noise(0, INDICES), on_step=None
    )


def theirs(scheduler, num_steps, monkeypatch, **options):
    """Their loop; state and coefficients in float64, the noise ours."""
    noise = Noise(0, INDICES)
    monkeypatch.setattr(
        f"{type(scheduler).__module__}.randn_tensor", lambda shape, **_: noise.normal(tuple(shape), dtype=torch.float64)
    )
    scheduler.set_timesteps(num_steps)
    x = noise.normal(SHAPE, dtype=torch.float64)
    for i in scheduler.timesteps.tolist():
        eps = eps_of(x, torch.tensor((i + 1) / T, dtype=torch.float64))
        x = scheduler.step(eps, i, x, **options).prev_sample
    return x


SCHEDULES = {
    "linear": (LinearBeta, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": (
        ScaledLinearBeta,
        {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    ),
    "cosine": (CosineBeta, {"beta_schedule": "squaredcos_cap_v2"}),
}
EACH_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES)


def pair(schedule, scheduler, **options):
    """Our process and their scheduler, which keeps alpha_bar in float32: that is put right, having been found equal."""
    ours_, theirs_ = SCHEDULES[schedule]
    process = GaussianProcess(ours_())
    made = scheduler(num_train_timesteps=T, **theirs_, **options)
    alpha_bar = process.alpha(torch.arange(1, T + 1, dtype=torch.float64) / T).square()
    torch.testing.assert_close(made.alphas_cumprod.double(), alpha_bar, rtol=1e-3, atol=1e-6)
    made.alphas_cumprod = alpha_bar
    return process, made


@pytest.mark.parametrize(
    ("schedule", "variance", "clip"),
    [
        ("linear", "small", False),
        ("linear", "large", True),
        ("scaled_linear", "large", False),
        ("cosine", "small", True),
    ],
)
def test_the_whole_chain_is_ddpms(monkeypatch, schedule, variance, clip):
    process, scheduler = pair(schedule, DDPMScheduler, variance_type=f"fixed_{variance}", clip_sample=clip)
    found = ours(process, GaussianAncestral(T, variance=variance), bound=1.0 if clip else None)
    torch.testing.assert_close(found, theirs(scheduler, T, monkeypatch), rtol=1e-7, atol=1e-7)


@EACH_SCHEDULE
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [False, True])
def test_a_strided_walk_is_ddims(monkeypatch, schedule, spacing, eta, clip):
    """Where their stride T // S is whole: they step by it whatever the spacing. Ours takes no noise in the last step."""
    process, scheduler = pair(
        schedule, DDIMScheduler, timestep_spacing=spacing, set_alpha_to_one=True, steps_offset=0, clip_sample=clip
    )
    for num_steps in (10, 50):
        grid = {"leading": "uniform", "trailing": "trailing"}[spacing]
        found = ours(process, DDIM(num_steps, eta=eta, grid=grid), bound=1.0 if clip else None)
        expected = theirs(scheduler, num_steps, monkeypatch, eta=eta, use_clipped_model_output=True)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # their conversion to NumPy 2
@EACH_SCHEDULE
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("num_steps", [5, 20, 50])
def test_a_fast_walk_is_dpm_solvers(monkeypatch, schedule, order, num_steps):
    """Their state is float32 between steps."""
    process, scheduler = pair(
        schedule,
        DPMSolverMultistepScheduler,
        algorithm_type="dpmsolver++",
        solver_order=order,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    found = ours(process, DPMSolver(num_steps, order=order))
    expected = theirs(scheduler, num_steps, monkeypatch)
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=1e-4)
