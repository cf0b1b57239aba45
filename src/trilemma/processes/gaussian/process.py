"""Gaussian noise processes: x_t = alpha(t) x0 + sigma(t) eps.

Shapes: x is [B, ...]; times s and t are a number, a scalar tensor or one time an image [B], 0 <= s < t <= 1 arbitrary.
Coefficients are computed in float64; what comes out has the dtype of x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trilemma.processes.categorical.schedules import Time
from trilemma.processes.gaussian.schedules import GaussianSchedule
from trilemma.processes.noise import NoiseSource


class GaussianProcess(nn.Module):
    """Any pair alpha(t), sigma(t): variance preserving, variance exploding (EDM), straight paths (flow matching).

    Arbitrary s < t is the primitive: a strided sampler is the same formula on a coarser grid.

    Sources: Kingma et al. 2021 (variational diffusion models), section 3 and appendix A; Ho et al. 2020, equations 4 to 7.

    Args:
        schedule: alpha and sigma as functions of time.
    """

    def __init__(self, schedule: GaussianSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    @property
    def num_steps(self) -> int | None:
        """Length T of the chain; None where the process is continuous."""
        return self.schedule.num_steps

    @property
    def min_time(self) -> float:
        """The least noisy time above 0 that a trajectory visits."""
        return self.schedule.min_time

    def grid(self, step: Tensor, num_steps: int, *, first: float | None = None) -> Tensor:
        """Give the times of steps i of a grid of T steps, float64 shaped like `step`: i / T on a chain, 0 at i = 0.

        A continuous process has its T times evenly from `first` to 1: below, nothing is trained and nobody walks.

        Args:
            step: i = 0..T.
            num_steps: T.
            first: Time of step 1; `min_time` where None.
        """
        first = self.min_time if first is None else first
        share = step.double() / num_steps
        if self.num_steps is not None or num_steps == 1:
            return share
        return torch.where(step > 0, first + (step.double() - 1.0) * ((1.0 - first) / (num_steps - 1)), 0.0)

    def time_of_noise(self, ratio: float) -> float:
        """Find the time at which sigma / alpha is `ratio`."""
        return float(self.schedule.time_of_log_snr(-2.0 * math.log(ratio)))

    def alpha(self, t: Time) -> Tensor:
        """Compute the scale of the data, float64 shaped like t."""
        return self.schedule.alpha(t)

    def sigma(self, t: Time) -> Tensor:
        """Compute the standard deviation of the noise, float64 shaped like t."""
        return self.schedule.sigma(t)

    def log_snr(self, t: Time) -> Tensor:
        """Compute log(alpha^2 / sigma^2), float64 shaped like t."""
        return self.schedule.log_snr(t)

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Compute the mean [B, ...] and standard deviation (broadcastable) of q(xt|x0)."""
        return broadcast_like(self.alpha(t), x0) * x0, broadcast_like(self.sigma(t), x0)

    def perturb(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Noise data x0 with eps, both [B, ...]: the state xt [B, ...]."""
        mean, std = self.marginal(x0, t)
        return torch.addcmul(mean, std.to(mean), eps)

    def sample(self, x0: Tensor, t: Time, noise: NoiseSource) -> Tensor:
        """Draw xt ~ q(xt|x0), [B, ...]."""
        return self.perturb(x0, t, noise.normal(tuple(x0.shape), dtype=x0.dtype))

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Compute alpha_ts and var_ts of q(xt|xs) = N(alpha_ts xs, var_ts), float64; var_ts of one chain step is its beta."""
        alpha_ts = self.alpha(t) / self.alpha(s)
        # sigma_t^2 - alpha_ts^2 sigma_s^2 without the cancellation.
        return alpha_ts, -self.sigma(t).square() * torch.expm1(self.log_snr(t) - self.log_snr(s))

    def posterior_coefficients(self, s: Time, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """Compute c0, ct, var of q(xs|xt,x0) = N(c0 x0 + ct xt, var), float64; var of one chain step is its beta tilde."""
        gained = -torch.expm1(self.log_snr(t) - self.log_snr(s))  # 1 - SNR(t) / SNR(s)
        alpha_s, var_s = self.alpha(s), self.sigma(s).square()
        return alpha_s * gained, self.alpha(t) / alpha_s * var_s / self.sigma(t).square(), var_s * gained

    def posterior(self, x0: Tensor, xt: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Compute the mean [B, ...] and variance (broadcastable, 0 at s = 0) of q(xs|xt,x0).

        Source: Ho et al. 2020, equation 7; for any s < t Kingma et al. 2021, equation 25.
        """
        c0, ct, var = self.posterior_coefficients(s, t)
        return broadcast_like(c0, xt) * x0 + broadcast_like(ct, xt) * xt, broadcast_like(var, xt)

    def log_variance_range(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        """Compute the logarithms of the two extreme variances of p(xs|xt), beta tilde and beta; float64.

        They are the right ones for data without and with unit variance (Ho et al. 2020, section 3.2). At s = 0 beta tilde is
        zero; the one of the next step of an even grid, from 2t to t, stands in (Ho et al. 2020, released code).
        """
        _, _, small = self.posterior_coefficients(s, t)
        _, large = self.transition(s, t)
        t64 = torch.as_tensor(t, dtype=torch.float64)
        # A step from t down to t / 2 at the very end, where twice t would be past 1.
        later = (2.0 * t64).clamp(max=1.0)
        earlier = torch.minimum(t64, 0.5 * later)
        _, _, next_small = self.posterior_coefficients(earlier, later)
        return torch.where(small > 0, small, next_small).log(), large.log()

    def prior(self, shape: tuple[int, ...], noise: NoiseSource, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw x1 ~ N(0, prior_std^2), `shape` = [B, ...]."""
        return self.schedule.prior_std * noise.normal(shape, dtype=dtype)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """Compute KL(q(x1|x0) || N(0, prior_std^2)) in nats per dimension, [B, ...]."""
        mean, std = self.marginal(x0.double(), 1.0)
        ratio = (std / self.schedule.prior_std) ** 2
        return 0.5 * ((mean / self.schedule.prior_std) ** 2 + ratio - 1.0 - torch.log(ratio))

    def eps_from_x0(self, x0: Tensor, xt: Tensor, t: Time) -> Tensor:
        """Convert x0 to the noise in xt, [B, ...]; t > 0."""
        return (xt - broadcast_like(self.alpha(t), xt) * x0) / broadcast_like(self.sigma(t), xt)

    def x0_from_eps(self, eps: Tensor, xt: Tensor, t: Time) -> Tensor:
        """Convert the noise in xt to x0, [B, ...]; alpha(t) > 0."""
        return (xt - broadcast_like(self.sigma(t), xt) * eps) / broadcast_like(self.alpha(t), xt)

    def score_from_x0(self, x0: Tensor, xt: Tensor, t: Time) -> Tensor:
        """Convert the posterior mean x0 to the score grad log p(xt) (Tweedie's formula), [B, ...]; t > 0."""
        return (broadcast_like(self.alpha(t), xt) * x0 - xt) / broadcast_like(self.sigma(t).square(), xt)


def broadcast_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Reshape a coefficient, scalar or [B], to multiply x [B, ...] without changing its dtype."""
    if coefficient.ndim == 0:
        return coefficient
    return coefficient.to(x.device, x.dtype).view(-1, *(1,) * (x.ndim - 1))
