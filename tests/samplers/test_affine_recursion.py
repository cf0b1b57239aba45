"""Every sampler on a Gaussian with the exact denoiser: what comes out is known to all digits, and is not the data's distribution."""

import math

import numpy as np
import pytest
import torch
from exact import MEAN, STD, distribution

from trilemma.conditions.base import Condition
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, CosineBeta, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import Guidance
from trilemma.samplers.guided import GuidedDenoiser

LINEAR, COSINE = GaussianProcess(LinearBeta()), GaussianProcess(CosineBeta())
EDM_, FLOW = GaussianProcess(EDM()), GaussianProcess(LinearPath())

# Standard deviations of N(0.3, 0.5^2), T = 1000, computed in NumPy from the betas alone.
TABLE = {
    "ddim, eta 0": (lambda S: DDIM(S, grid="linspace"), {1000: 0.49850, 100: 0.48585, 50: 0.47192, 10: 0.36161}),
    "ddim, eta 1": (
        lambda S: DDIM(S, eta=1.0, grid="linspace"),
        {1000: 0.49611, 100: 0.46795, 50: 0.44319, 10: 0.32284},
    ),
    "small": (lambda S: GaussianAncestral(S, grid="linspace"), {1000: 0.49611, 100: 0.46795, 50: 0.44319, 10: 0.32284}),
    "large": (
        lambda S: GaussianAncestral(S, variance="large", grid="linspace"),
        {1000: 0.50075, 100: 0.50858, 50: 0.51757, 10: 0.59877},
    ),
    "optimal": (
        lambda S: GaussianAncestral(S, variance="optimal", grid="linspace"),
        {1000: 0.49990, 100: 0.49990, 50: 0.49990, 10: 0.49990},
    ),
}
CASES = [(name, S, std) for name, (_, stds) in TABLE.items() for S, std in stds.items()]


@pytest.mark.parametrize(("name", "num_steps", "std"), CASES)
def test_the_published_recursion_on_the_linear_schedule(name, num_steps, std):
    _, found = distribution(LINEAR, TABLE[name][0](num_steps))
    assert found == pytest.approx(std, abs=1e-5)


@pytest.mark.parametrize(
    ("process", "sampler", "std"),
    [
        (COSINE, DDIM(50, grid="linspace"), 0.48454),
        (COSINE, DDIM(10, grid="linspace"), 0.42105),
        (LINEAR, DDIM(50, grid="uniform"), 0.47244),
        (LINEAR, DDIM(20, grid="uniform"), 0.43373),
        (LINEAR, DDIM(10, grid="uniform"), 0.37413),
        (EDM_, Heun(18), 0.52762),
        (EDM_, Heun(40), 0.50488),
        (EDM_, Heun(18, order=1), 0.42303),
        (EDM_, Heun(40, order=1), 0.46485),
        (EDM_, DDIM(18, grid="karras"), 0.42303),  # DDIM is Euler's method here
        (FLOW, Heun(4, order=1), 0.34054),
        (FLOW, Heun(10, order=1), 0.43078),
        (FLOW, Heun(50, order=1), 0.48540),
        (FLOW, DDIM(10), 0.43078),
        # A second-order last step would give .50172; ours is Euler's, since a flow at t = 0 has no noise to look at.
        (FLOW, Heun(10), 0.49081),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_schedules_and_grids(process, sampler, std):
    mean, found = distribution(process, sampler)
    assert found == pytest.approx(std, abs=1e-5)
    assert mean == pytest.approx(MEAN, abs=0.013)


def euler_or_heun_on_the_flow(num_steps, *, order_of_last):
    """dx/dt = E[eps - x0 | x] of the straight path, written out for a Gaussian; the gain from t = 1 to 0."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * STD**2 + t**2
        return (t - (1 - t) * STD**2) / variance * x

    x = 1.0
    for i in range(num_steps, 0, -1):
        t, s = i / num_steps, (i - 1) / num_steps
        v = velocity(x, t)
        ahead = x + (s - t) * v
        x = x + (s - t) * (v + velocity(ahead, s)) / 2 if i > 1 or order_of_last == 2 else ahead
    return x


def test_heun_on_a_flow_is_heun_on_its_velocity_but_for_the_last_step():
    assert euler_or_heun_on_the_flow(10, order_of_last=2) == pytest.approx(0.50172, abs=1e-5)
    for num_steps in (1, 4, 10, 33):
        _, found = distribution(FLOW, Heun(num_steps))
        assert found == pytest.approx(euler_or_heun_on_the_flow(num_steps, order_of_last=1), abs=1e-10)


def test_last_step_is_eulers():
    """Of two points, whose noise is all off the data, it leaves none; the slope at 0 is -x of any data, and leaves half of it."""

    def predict(xt, t, condition, noise):
        return Prediction(x0=torch.tanh((1 - t) * xt / t**2))

    start = torch.randn(1000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = Heun(10).times(FLOW)
    denoiser = GuidedDenoiser(predict, FLOW, Condition(1000), Guidance(), Noise(0, torch.arange(1000)))
    states = [x for x, _ in Heun(10).trajectory(start, grid, denoiser)]
    assert (states[-1].abs() - 1).abs().max() < 1e-9
    before, t = states[-2], grid[-2]
    slope = (before - states[-1]) / t
    full = before - t * 0.5 * (slope - states[-1])
    torch.testing.assert_close(full - states[-1], 0.5 * (before - (1 - t) * states[-1]))


def second_order_multistep(alpha, sigma):
    """DPM-Solver++(2M) of Lu et al. 2022 on a Gaussian as gains A (of the start) and C (constant), in lambda throughout."""
    A, C, before = 1.0, 0.0, None
    lam = [math.log(a / s) if s > 0 else math.inf for a, s in zip(alpha, sigma, strict=True)]
    for i in range(1, len(alpha)):
        total = alpha[i - 1] ** 2 * STD**2 + sigma[i - 1] ** 2
        gain = alpha[i - 1] * STD**2 / total
        x0 = np.array([gain * A, gain * C + MEAN * (1 - gain * alpha[i - 1])])
        h = lam[i] - lam[i - 1]
        D = x0
        if before is not None and i < len(alpha) - 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        scale = sigma[i] / sigma[i - 1]
        A, C = np.array([scale * A, scale * C]) - alpha[i] * math.expm1(-h) * D
        before = x0
    return A, C


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 50])
def test_dpm_solver_is_the_papers_second_order_multistep_method(num_steps):
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    points = np.append(np.round(np.arange(num_steps, 0, -1) * 1000 / num_steps).astype(int), 0)
    A, C = second_order_multistep(np.sqrt(alpha_bar[points]), np.sqrt(1 - alpha_bar[points]))
    mean, std = distribution(LINEAR, DPMSolver(num_steps))
    assert mean == pytest.approx(C, abs=1e-9)
    assert std == pytest.approx(abs(A), abs=1e-9)


# The last step, from the least noise to none, is of first order in all: grids whose least noise falls like 1 / N.
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (lambda N: DDIM(N), 1),
        (lambda N: DPMSolver(N, order=1), 1),
        (lambda N: Heun(N, order=1), 1),
        (lambda N: DPMSolver(N), 2),
        (lambda N: Heun(N), 2),
    ],
    ids=["ddim", "dpm_solver 1", "euler", "dpm_solver 2", "heun"],
)
def test_the_error_falls_with_the_order_of_the_method(sampler, order):
    errors = [abs(distribution(FLOW, sampler(N))[1] - STD) for N in (100, 400)]
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("num_steps", [1, 7, 20])
def test_first_order_solver_is_ddim(num_steps):
    for process in (LINEAR, COSINE):
        assert distribution(process, DPMSolver(num_steps, order=1)) == pytest.approx(
            distribution(process, DDIM(num_steps)), abs=1e-12
        )


@pytest.mark.parametrize("process", [LINEAR, COSINE, GaussianProcess(LinearBeta(zero_terminal_snr=True)), FLOW])
@pytest.mark.parametrize("num_steps", [1, 3, 17])
def test_the_optimal_variance_is_exact_at_any_stride(process, num_steps):
    """Whatever the stride, the state at every s is the marginal that the start evolves to; only the noiseless step loses.

    Started from N(0, 1), x at s under exact reverse steps has the variance of sampling x0 from its posterior at t_0 and
    noising it: with a posterior of gain g and variance v that is alpha^2 (g^2 + v) + sigma^2. The last step then takes the
    posterior mean, which removes the posterior variance at the last time.
    """
    sampler = GaussianAncestral(num_steps, variance="optimal")
    grid = sampler.times(process)
    first, last = grid[0], grid[-2]
    alpha, sigma = float(process.alpha(first)), float(process.sigma(first))
    total = (alpha * STD) ** 2 + sigma**2
    gain, left = alpha * STD**2 / total, STD**2 * sigma**2 / total
    x0_variance = gain**2 + left
    alpha, sigma = float(process.alpha(last)), float(process.sigma(last))
    xt_variance = alpha**2 * x0_variance + sigma**2 if num_steps > 1 else 1.0
    expected = alpha * STD**2 / ((alpha * STD) ** 2 + sigma**2) * math.sqrt(xt_variance)
    assert distribution(process, sampler)[1] == pytest.approx(expected, rel=1e-8)


def test_a_respaced_walk_is_the_walk_on_the_chain_of_those_steps():
    """Improved DDPM's respacing: betas 1 - alpha_bar[i] / alpha_bar[i - 1] of the kept steps give the same chain."""

    class Respaced(LinearBeta):
        def __init__(self, kept):
            super().__init__()
            alpha = self.alpha(np.array([0, *kept]) / 1000)
            super(LinearBeta, self).__init__(1 - (alpha[1:] / alpha[:-1]) ** 2)

    kept = [round(k * 999 / 9) + 1 for k in range(10)]
    short = GaussianProcess(Respaced(kept))
    for variance in ("small", "large", "optimal"):
        whole = distribution(LINEAR, GaussianAncestral(10, variance=variance, grid="linspace"))
        assert whole == pytest.approx(distribution(short, GaussianAncestral(10, variance=variance)), abs=1e-9)
    assert distribution(LINEAR, DDIM(10, grid="linspace")) == pytest.approx(distribution(short, DDIM(10)), abs=1e-9)
