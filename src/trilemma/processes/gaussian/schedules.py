"""Noise schedules of Gaussian processes: alpha and sigma of x_t = alpha(t) x0 + sigma(t) eps, t in [0, 1], in float64."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.categorical.schedules import Time, as_float64

Path = Literal["noise", "flow"]


class GaussianSchedule(ABC):
    """A pair alpha(t), sigma(t) with rising noise; sigma(0) is 0 and alpha(0) is 1 exactly.

    Attributes:
        num_steps: T where the schedule is a chain, defined on the grid i / T and interpolated between; None where it is
            continuous.
        prior_std: Standard deviation of the distribution that sampling starts from at t = 1.
        path: Frame in which the probability-flow path of a fixed (x0, eps) is a straight line followed at even speed, and
            which higher-order solvers work in: "noise" is x / alpha over sigma / alpha, "flow" is x / (alpha + sigma) over
            sigma / (alpha + sigma), which alpha = 0 does not break.
    """

    num_steps: int | None = None
    prior_std: float = 1.0
    path: Path = "noise"

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Compute the scale of the data at time t, float64 shaped like t."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Compute the standard deviation of the noise at time t, float64 shaped like t."""

    @abstractmethod
    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """Compute d alpha / dt and d sigma / dt at t > 0, float64 shaped like t."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """Find the time of a log-SNR, float64: the inverse of `log_snr`."""

    @property
    @abstractmethod
    def min_time(self) -> float:
        """The least noisy time above 0 that a trajectory visits: 1 / T on a chain."""

    def log_snr(self, t: Time) -> Tensor:
        """Compute log(alpha^2 / sigma^2): infinite at t = 0, minus infinity where alpha is 0."""
        return 2.0 * (self.alpha(t).log() - self.sigma(t).log())


class Chain(GaussianSchedule):
    """A variance-preserving chain of T steps, given by the betas of Ho et al. 2020, equation 2.

    On the grid i / T, alpha is the square root of the product of 1 - beta exactly; between, alpha is interpolated linearly.

    Args:
        beta: Variance that each step adds, float64 [T], in (0, 1].
        zero_terminal_snr: Rescale alpha so that nothing of the data is left at t = 1 (Lin et al. 2024, algorithm 1).
    """

    path: Path = "flow"  # sigma / alpha starts at 157 (linear), 20,000 (cosine) or infinity: too large for few steps

    def __init__(self, beta: Tensor, *, zero_terminal_snr: bool = False) -> None:
        self.num_steps = len(beta)
        self.zero_terminal_snr = zero_terminal_snr
        half_log_alpha_bar = 0.5 * torch.log1p(-beta.double()).cumsum(0)
        if zero_terminal_snr:
            alpha = half_log_alpha_bar.exp()
            # alpha_1 stays, alpha_T becomes 0; the rest is moved and stretched between them.
            lost = 1.0 - (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
        else:
            lost = -torch.expm1(half_log_alpha_bar)
        # 1 - alpha, of which sigma is computed without cancellation: sigma^2 = (1 - alpha)(1 + alpha).
        self._tables = {torch.device("cpu"): torch.cat([lost.new_zeros(1), lost])}

    def alpha(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return 1.0 - self._lost(t)[0]

    def sigma(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        lost, _ = self._lost(t)
        return (lost * (2.0 - lost)).sqrt()

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """See `GaussianSchedule`; at a grid point, the slopes of the step that ends there."""
        lost, slope = self._lost(t)
        return -slope, (1.0 - lost) * slope / (lost * (2.0 - lost)).sqrt()

    def log_snr(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        lost, _ = self._lost(t)
        return 2.0 * torch.log1p(-lost) - (lost * (2.0 - lost)).log()

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """See `GaussianSchedule`; a value out of range maps to the nearest end."""
        lost = -torch.expm1(-0.5 * F.softplus(-as_float64(log_snr)))
        table = self._table(lost.device)
        upper = torch.searchsorted(table, lost.contiguous()).clamp(1, len(table) - 1)
        left, right = table[upper - 1], table[upper]
        return ((upper - 1 + (lost - left) / (right - left)) / (len(table) - 1)).clamp(0.0, 1.0)

    @property
    def min_time(self) -> float:
        """See `GaussianSchedule`."""
        assert self.num_steps is not None
        return 1.0 / self.num_steps

    def _lost(self, t: Time) -> tuple[Tensor, Tensor]:
        """Compute 1 - alpha(t) and its derivative."""
        time = as_float64(t)
        table = self._table(time.device)
        num_steps = len(table) - 1
        position = time * num_steps
        # The step that ends at or holds t; the rounding of i / T must not move a grid point into the next.
        step = (position - 1e-6).ceil().long().clamp(1, num_steps)
        left, right = table[step - 1], table[step]
        return torch.lerp(left, right, position - (step - 1)), (right - left) * num_steps

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


class LinearBeta(Chain):
    """Beta linear from `start` to `end` (Ho et al. 2020, section 4), both scaled by 1000 / T for other lengths.

    Source of the scaling: Nichol and Dhariwal 2021, released code.

    Args:
        num_steps: T.
        start: First beta of a chain of 1000.
        end: Last.
        zero_terminal_snr: See `Chain`.

    Raises:
        UserError: If a beta leaves (0, 1).
    """

    def __init__(
        self, num_steps: int = 1000, *, start: float = 1e-4, end: float = 0.02, zero_terminal_snr: bool = False
    ) -> None:
        beta = _between(num_steps, start, end) * (1000 / num_steps)
        super().__init__(_checked(beta), zero_terminal_snr=zero_terminal_snr)


class ScaledLinearBeta(Chain):
    """Square root of beta linear (Rombach et al. 2022, released code), scaled like `LinearBeta`.

    Args:
        num_steps: T.
        start: First beta of a chain of 1000.
        end: Last.
        zero_terminal_snr: See `Chain`.

    Raises:
        UserError: If a beta leaves (0, 1).
    """

    def __init__(
        self, num_steps: int = 1000, *, start: float = 0.0015, end: float = 0.0195, zero_terminal_snr: bool = False
    ) -> None:
        if not 0.0 < start < end:
            raise UserError(f"schedule.start={start} schedule.end={end}: must satisfy 0 < start < end")
        beta = _between(num_steps, math.sqrt(start), math.sqrt(end)).square() * (1000 / num_steps)
        super().__init__(_checked(beta), zero_terminal_snr=zero_terminal_snr)


class CosineBeta(Chain):
    """alpha^2 = f(t) / f(0), f(t) = cos^2(pi/2 (t + o) / (1 + o)), no beta above `max_beta` (Nichol and Dhariwal 2021, eq. 17).

    Args:
        num_steps: T.
        offset: o.
        max_beta: Keeps the last steps from destroying everything at once.
        zero_terminal_snr: See `Chain`.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, num_steps: int = 1000, *, offset: float = 0.008, max_beta: float = 0.999, zero_terminal_snr: bool = False
    ) -> None:
        if num_steps < 2 or offset < 0.0 or not 0.0 < max_beta < 1.0:
            raise UserError(
                f"schedule.num_steps={num_steps} offset={offset} max_beta={max_beta}: need at least 2 steps, an offset "
                "of at least 0 and max_beta in (0, 1)"
            )
        t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        f = torch.cos((t + offset) / (1 + offset) * math.pi / 2).square()
        super().__init__((1 - f[1:] / f[:-1]).clamp(max=max_beta), zero_terminal_snr=zero_terminal_snr)


class VPSDE(GaussianSchedule):
    """The continuous limit of linear betas: beta(t) = beta_min + t (beta_max - beta_min), alpha = exp(-1/2 int beta).

    Source: Song et al. 2021, equation 33; the denoising diffusion GAN's schedule (Xiao et al. 2022).

    Args:
        beta_min: beta(0).
        beta_max: beta(1).

    Raises:
        UserError: If not 0 < beta_min < beta_max.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0.0 < beta_min < beta_max:
            raise UserError(f"schedule.beta_min={beta_min} beta_max={beta_max}: must satisfy 0 < beta_min < beta_max")
        self.path = "flow"
        self.beta_min, self.beta_max = beta_min, beta_max

    def alpha(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return self._log_alpha(t).exp()

    def sigma(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return (-torch.expm1(2.0 * self._log_alpha(t))).sqrt()

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """See `GaussianSchedule`."""
        half_beta = 0.5 * (self.beta_min + as_float64(t) * (self.beta_max - self.beta_min))
        alpha, sigma = self.alpha(t), self.sigma(t)
        return -half_beta * alpha, half_beta * alpha.square() / sigma

    def log_snr(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        log_alpha = self._log_alpha(t)
        return 2.0 * log_alpha - (-torch.expm1(2.0 * log_alpha)).log()

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """See `GaussianSchedule`."""
        lost = 0.5 * F.softplus(-as_float64(log_snr))  # -log alpha
        half = 0.5 * self.beta_min
        return 2.0 * lost / (half + (half**2 + (self.beta_max - self.beta_min) * lost).sqrt())

    @property
    def min_time(self) -> float:
        """See `GaussianSchedule`; Song et al. 2021, appendix C."""
        return 1e-3

    def _log_alpha(self, t: Time) -> Tensor:
        time = as_float64(t)
        return -0.25 * (self.beta_max - self.beta_min) * time.square() - 0.5 * self.beta_min * time


class EDM(GaussianSchedule):
    """Variance exploding: alpha = 1, sigma = sigma_max t^rho.

    Even steps in t are Karras et al.'s spacing of sigma (Karras et al. 2022, equation 5) with sigma_min = 0; the grid
    "karras" is theirs exactly.

    Args:
        sigma_min: The least noise level of a trajectory before 0.
        sigma_max: Noise at t = 1.
        rho: Exponent of the spacing; larger values put more times at small noise.

    Raises:
        UserError: If not 0 < sigma_min < sigma_max and rho > 0.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, *, rho: float = 7.0) -> None:
        if not 0.0 < sigma_min < sigma_max or rho <= 0:
            raise UserError(
                f"schedule.sigma_min={sigma_min} sigma_max={sigma_max} rho={rho}: must satisfy 0 < sigma_min < sigma_max "
                "and rho > 0"
            )
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.prior_std = sigma_max

    def alpha(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return torch.ones_like(as_float64(t))

    def sigma(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return self.sigma_max * as_float64(t).pow(self.rho)

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """See `GaussianSchedule`."""
        time = as_float64(t)
        return torch.zeros_like(time), self.sigma_max * self.rho * time.pow(self.rho - 1.0)

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return (torch.exp(-0.5 * as_float64(log_snr)) / self.sigma_max).pow(1.0 / self.rho)

    @property
    def min_time(self) -> float:
        """See `GaussianSchedule`."""
        return float((self.sigma_min / self.sigma_max) ** (1.0 / self.rho))


class LinearPath(GaussianSchedule):
    """alpha = 1 - t, sigma = t: flow matching with straight paths (Lipman et al. 2023; Liu et al. 2023)."""

    path: Path = "flow"

    def alpha(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return 1.0 - as_float64(t)

    def sigma(self, t: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return as_float64(t).clone()

    def derivatives(self, t: Time) -> tuple[Tensor, Tensor]:
        """See `GaussianSchedule`."""
        one = torch.ones_like(as_float64(t))
        return -one, one

    def time_of_log_snr(self, log_snr: Time) -> Tensor:
        """See `GaussianSchedule`."""
        return torch.sigmoid(-0.5 * as_float64(log_snr))

    @property
    def min_time(self) -> float:
        """See `GaussianSchedule`."""
        return 1e-3


def _between(num_steps: int, start: float, end: float) -> Tensor:
    if num_steps < 2:
        raise UserError(f"schedule.num_steps={num_steps}: a chain needs at least 2 steps")
    return torch.linspace(start, end, num_steps, dtype=torch.float64)


def _checked(beta: Tensor) -> Tensor:
    if not bool(((beta > 0) & (beta < 1)).all()):
        raise UserError(
            f"the schedule's betas run from {float(beta.min()):g} to {float(beta.max()):g} and must lie in (0, 1): change "
            "schedule.start, schedule.end, or take more steps"
        )
    return beta
