"""The numbers of the closed-form processes at a pair of times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.processes.categorical.schedules import Schedule, Time, as_float64


@dataclass(frozen=True)
class Coefficients:
    """Numbers of q(xs|x0), q(xt|x0) and q(xt|xs), float64: scalars, or [B, 1].

    Attributes:
        alpha_s: alpha_bar(s).
        alpha_t: alpha_bar(t).
        gamma_s: gamma_bar(s).
        gamma_t: gamma_bar(t).
        replaced_s: b_bar(s), per class.
        replaced_t: b_bar(t), per class.
        keep: a of Q_{t|s} = a I + b (classes) + c (mask).
        replace: b, per class.
        unmasked_s: 1 - gamma_bar(s).
        reveal: Probability 1 - gamma_bar(s) / gamma_bar(t) that a token masked at t is not masked at s.
    """

    alpha_s: Tensor
    alpha_t: Tensor
    gamma_s: Tensor
    gamma_t: Tensor
    replaced_s: Tensor
    replaced_t: Tensor
    keep: Tensor
    replace: Tensor
    unmasked_s: Tensor
    reveal: Tensor


def coefficients(schedule: Schedule, num_classes: int, s: Time, t: Time) -> Coefficients:
    """Coefficients at 0 <= s < t <= 1.

    Raises:
        ValueError: If two plain numbers are not in that order (tensors are not looked at: it would wait for the
            device).
    """
    if isinstance(s, float | int) and isinstance(t, float | int) and not 0.0 <= s < t <= 1.0:
        raise ValueError(f"times must satisfy 0 <= s < t <= 1, not s={s}, t={t}")
    alpha_s, gamma_s, lost_s = masses(schedule, s)
    alpha_t, gamma_t, lost_t = masses(schedule, t)
    keep = alpha_t / positive(alpha_s)
    unmasked_s = alpha_s + lost_s
    # (1 - gamma_t)/(1 - gamma_s) - a, arranged so that it is zero exactly where nothing is replaced.
    replace = ((lost_t - keep * lost_s) / positive(unmasked_s)).clamp(min=0.0)
    return Coefficients(
        alpha_s=alpha_s,
        alpha_t=alpha_t,
        gamma_s=gamma_s,
        gamma_t=gamma_t,
        replaced_s=lost_s / num_classes,
        replaced_t=lost_t / num_classes,
        keep=keep,
        replace=replace / num_classes,
        unmasked_s=unmasked_s,
        reveal=(gamma_t - gamma_s) / positive(gamma_t),
    )


def masses(schedule: Schedule, t: Time) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha_bar, gamma_bar and K * b_bar at t, which sum to one: scalars, or [B, 1]."""
    time = as_float64(t)
    if time.ndim:
        time = time.unsqueeze(-1)
    alpha, gamma = schedule.alpha_bar(time), schedule.gamma_bar(time)
    return alpha, gamma, (1.0 - alpha - gamma).clamp(min=0.0)


def positive(x: Tensor) -> Tensor:
    """A denominator that is zero only where its numerator is."""
    return torch.where(x > 0, x, 1.0)
