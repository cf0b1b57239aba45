"""The variational bound of a Gaussian chain, term by term, in nats per dimension.

Source: Ho et al. 2020, equations 5 and 13; Nichol and Dhariwal 2021, section 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma.processes.categorical.schedules import Time
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like


def step_terms(
    process: GaussianProcess,
    x0: Tensor,
    xt: Tensor,
    s: Tensor,
    t: Tensor,
    x0_mean: Tensor,
    log_variance: Tensor,
    *,
    bin_width: float,
) -> Tensor:
    """Compute KL(q(xs|xt,x0) || p(xs|xt)) where s > 0, and -log p(x0|xt) of data on a grid of levels where s = 0.

    Args:
        process: The chain.
        x0: Data in [-1, 1] on levels `bin_width` apart, [B, ...].
        xt: A state at t, [B, ...].
        s: Earlier times [B].
        t: Later times [B].
        x0_mean: The model's mean of x0 given xt, [B, ...].
        log_variance: Logarithm of the variance of p(xs|xt), broadcastable to [B, ...].
        bin_width: Distance of two levels of the data, 2 / 255 for uint8 images.

    Returns:
        Nats, [B, ...]; differentiable in `x0_mean` and `log_variance`.
    """
    mean, true_variance = process.posterior(x0, xt, s, t)
    model_mean, _ = process.posterior(x0_mean, xt, s, t)
    last = (s == 0).view(-1, *(1,) * (xt.ndim - 1))
    # Where the other branch is taken, its gradient must be finite too.
    true_log = torch.where(last, 0.0, true_variance).clamp(min=torch.finfo(xt.dtype).tiny).log()
    kl = gaussian_kl(mean, true_log, model_mean, log_variance)
    return torch.where(last, -discretised_log_prob(x0, model_mean, 0.5 * log_variance, bin_width), kl)


def gaussian_kl(mean_q: Tensor, log_var_q: Tensor, mean_p: Tensor, log_var_p: Tensor) -> Tensor:
    """Compute KL(N(mean_q, exp(log_var_q)) || N(mean_p, exp(log_var_p))) in nats, elementwise."""
    ratio = log_var_q - log_var_p
    return 0.5 * ((mean_q - mean_p).square() * torch.exp(-log_var_p) + torch.exp(ratio) - 1.0 - ratio)


def discretised_log_prob(x: Tensor, mean: Tensor, log_std: Tensor, bin_width: float) -> Tensor:
    """Compute the log-probability of levels x in [-1, 1] under N(mean, std^2): the mass of each bin, tails in the outermost.

    The probabilities of all levels sum to 1 (Ho et al. 2020, equation 13). Differences of the normal CDF are taken in
    logarithms on the side where they are small, so that neither tail is rounded away.

    Args:
        x: Levels, [B, ...].
        mean: [B, ...].
        log_std: Broadcastable to x.
        bin_width: Distance of two levels.

    Returns:
        Nats, shaped like x.
    """
    inverse = torch.exp(-log_std)
    upper, lower = (x - mean + 0.5 * bin_width) * inverse, (x - mean - 0.5 * bin_width) * inverse
    is_top, is_bottom = x > 1.0 - 0.5 * bin_width, x < -1.0 + 0.5 * bin_width
    # By symmetry the interval may be mirrored; below 0 both logarithms are accurate.
    flip = upper + lower > 0
    near, far = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    log_near, log_far = torch.special.log_ndtr(near), torch.special.log_ndtr(far)
    # Where the bin is much narrower than the density changes, the difference is density times width.
    gap = (log_far - log_near).clamp(max=-1e-6)
    inside = log_near + torch.log(-torch.expm1(gap))
    open_up, open_down = torch.special.log_ndtr(-lower), torch.special.log_ndtr(upper)
    return torch.where(is_top, open_up, torch.where(is_bottom, open_down, inside))


def interpolated_log_variance(process: GaussianProcess, fraction: Tensor, s: Time, t: Time) -> Tensor:
    """Interpolate a learned log-variance, `fraction` of the way from log beta tilde to log beta (Nichol and Dhariwal 2021, eq. 15).

    Args:
        process: The process.
        fraction: Usually, not necessarily, in [0, 1], [B, ...].
        s: Earlier time.
        t: Later time.
    """
    small, large = process.log_variance_range(s, t)
    return torch.lerp(
        broadcast_like(small, fraction).to(fraction), broadcast_like(large, fraction).to(fraction), fraction
    )


def bits(nats: Tensor) -> Tensor:
    """Convert nats to bits."""
    return nats / math.log(2)
