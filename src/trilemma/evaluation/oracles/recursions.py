"""What samplers make of known data, worked out from the papers' formulas alone: nothing here calls a sampler or a process.

A ladder is where a trajectory stops: alpha_0, ..., alpha_N = 1 and sigma_0, ..., sigma_N = 0, from the noise down. `X0` says the mean of
the data given x at a rung.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

X0 = Callable[[Tensor, float, float], Tensor]
"""(x, alpha, sigma) -> the mean of x0 given x."""


@dataclass(frozen=True)
class Ladder:
    """alpha and sigma at each stop of a trajectory, and the deviation of the noise it starts from."""

    alpha: list[float]
    sigma: list[float]
    prior_std: float = 1.0

    @property
    def rungs(self) -> list[tuple[float, float, float, float]]:
        """(alpha_t, sigma_t, alpha_s, sigma_s) of each step."""
        return list(zip(self.alpha, self.sigma, self.alpha[1:], self.sigma[1:], strict=False))


def chain(num_steps: int, length: int = 1000) -> Ladder:
    """The linear betas of Ho et al. 2020, every (length / num_steps)-th step from the last."""
    beta = torch.linspace(1e-4, 0.02, length, dtype=torch.float64) * (1000 / length)
    alpha_bar = [1.0, *(1 - beta).cumprod(0).tolist()]
    kept = [alpha_bar[round(length * i / num_steps)] for i in range(num_steps, -1, -1)]
    return Ladder([math.sqrt(a) for a in kept], [math.sqrt(1 - a) for a in kept])


def karras(num_steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> Ladder:
    """Karras et al. 2022, equation 5."""
    ends = high ** (1 / rho), low ** (1 / rho)
    levels = [(ends[0] + i / (num_steps - 1) * (ends[1] - ends[0])) ** rho for i in range(num_steps)]
    return Ladder([1.0] * (num_steps + 1), [*levels, 0.0], prior_std=high)


def straight(num_steps: int) -> Ladder:
    """The straight path of flow matching, even in time."""
    t = [i / num_steps for i in range(num_steps, -1, -1)]
    return Ladder([1 - u for u in t], t)


def gaussian_x0(mean: float, std: float) -> X0:
    """Of data N(mean, std^2)."""

    def x0(x: Tensor, alpha: float, sigma: float) -> Tensor:
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return x0


def two_gaussians_x0(gap: float, std: float, weight: float, scale: float) -> X0:
    """Of weight N(gap, std^2) + (1 - weight) N(-gap, std^2), guided: (1 - scale) times that and scale times the upper one's own."""
    upper, lower = gaussian_x0(gap, std), gaussian_x0(-gap, std)

    def x0(x: Tensor, alpha: float, sigma: float) -> Tensor:
        variance = (alpha * std) ** 2 + sigma**2
        share = torch.sigmoid(math.log(weight / (1 - weight)) + 2 * alpha * gap * x / variance)
        mixed = share * upper(x, alpha, sigma) + (1 - share) * lower(x, alpha, sigma)
        return (1 - scale) * mixed + scale * upper(x, alpha, sigma)

    return x0


def ancestral_moments(ladder: Ladder, mean: float, std: float, variance: str) -> tuple[float, float]:
    """Mean and deviation of what ancestral sampling makes of N(mean, std^2) with the exact mean of x0.

    Every step is affine with independent noise: m <- A m + C, v <- A^2 v + n (Ho et al. 2020, equations 6 and 7; n of Bao
    et al. 2022 where `variance` is "optimal").
    """
    m, v = 0.0, ladder.prior_std**2
    for alpha, sigma, alpha_s, sigma_s in ladder.rungs:
        beta = sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2  # of the step, as sigma^2 of xt given xs
        c0, ct = alpha_s * beta / sigma**2, alpha / alpha_s * sigma_s**2 / sigma**2
        small = sigma_s**2 * beta / sigma**2
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        left = std**2 * sigma**2 / ((alpha * std) ** 2 + sigma**2)
        noise = {"small": small, "large": beta, "optimal": small + c0**2 * left}[variance] if sigma_s > 0 else 0.0
        a = c0 * gain + ct
        m, v = a * m + c0 * mean * (1 - gain * alpha), a**2 * v + noise
    return m, math.sqrt(v)


def ddim_moments(ladder: Ladder, mean: float, std: float, eta: float) -> tuple[float, float]:
    """Likewise of DDIM (Song et al. 2021, equation 12)."""
    m, v = 0.0, ladder.prior_std**2
    for alpha, sigma, alpha_s, sigma_s in ladder.rungs:
        noise = eta**2 * sigma_s**2 / sigma**2 * (sigma**2 - (alpha / alpha_s) ** 2 * sigma_s**2)
        gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)
        kept = math.sqrt(sigma_s**2 - noise) / sigma
        a = alpha_s * gain + kept * (1 - alpha * gain)
        m = a * m + (alpha_s - kept * alpha) * mean * (1 - gain * alpha)
        v = a**2 * v + noise
    return m, math.sqrt(v)


def ddim_map(x: Tensor, ladder: Ladder, x0: X0) -> Tensor:
    """Where DDIM without noise takes x."""
    for alpha, sigma, alpha_s, sigma_s in ladder.rungs:
        clean = x0(x, alpha, sigma)
        x = alpha_s * clean + sigma_s * (x - alpha * clean) / sigma
    return x


def heun_map(x: Tensor, ladder: Ladder, x0: X0, *, flow: bool) -> Tensor:
    """Where Heun's method takes x: on dx/dsigma = (x - x0) / sigma, or for a flow on dx/dt = eps - x0; Euler's last step."""

    def slope(x: Tensor, alpha: float, sigma: float) -> Tensor:
        clean = x0(x, alpha, sigma)
        eps = (x - alpha * clean) / sigma
        return eps - clean if flow else eps

    for alpha, sigma, alpha_s, sigma_s in ladder.rungs:
        first = slope(x, alpha, sigma)
        ahead = x + (sigma_s - sigma) * first
        x = x + (sigma_s - sigma) * 0.5 * (first + slope(ahead, alpha_s, sigma_s)) if sigma_s > 0 else ahead
    return x


def dpm_solver_map(x: Tensor, ladder: Ladder, x0: X0) -> Tensor:
    """Where DPM-Solver++(2M) takes x (Lu et al. 2022, algorithm 2), its first and last step of first order."""
    before: Tensor | None = None
    h_before = math.nan
    for alpha, sigma, alpha_s, sigma_s in ladder.rungs:
        clean = x0(x, alpha, sigma)
        if sigma_s == 0.0:
            return clean
        ratio = alpha * sigma_s / (alpha_s * sigma)  # exp(-h)
        h = -math.log(ratio) if ratio > 0 else math.inf
        mixed = clean if before is None else clean + h / (2 * h_before) * (clean - before)
        x = sigma_s / sigma * x + alpha_s * (1 - ratio) * mixed
        before, h_before = clean, h
    return x


def moments_of_map(found: Callable[[Tensor], Tensor], prior_std: float) -> tuple[float, float]:
    """Mean and deviation of an affine map of N(0, prior_std^2)."""
    at = found(torch.tensor([0.0, prior_std], dtype=torch.float64))
    return float(at[0]), float((at[1] - at[0]).abs())


def expectation(function: Callable[[Tensor], Tensor], prior_std: float) -> float:
    """The mean of a function of N(0, prior_std^2), by the midpoint rule within 8 deviations."""
    edges = torch.linspace(-8, 8, 16_001, dtype=torch.float64)
    z = (edges[1:] + edges[:-1]) / 2
    mass = torch.exp(-0.5 * z.square())
    return float((function(prior_std * z) * mass).sum() / mass.sum())
