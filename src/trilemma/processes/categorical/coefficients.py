"""Coefficients of the closed-form processes at a pair of times, and whether their schedule is that of a Markov chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.categorical.schedules import Schedule, Time, as_float64

ROUNDING = 1e-13
"""Probabilities, and differences of them, that float64 cannot tell from zero beside 1."""


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


class Rates(NamedTuple):
    """Instantaneous rates of the continuous-time chain, float64 shaped like t."""

    mask: Tensor
    """Rate at which a token that is not masked becomes masked."""
    replace: Tensor
    """Rate at which a token that is not masked is redrawn uniformly (it may land on its own class)."""


def coefficients(schedule: Schedule, num_classes: int, s: Time, t: Time) -> Coefficients:
    """Compute the coefficients at 0 <= s < t <= 1.

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
    """Compute alpha_bar, gamma_bar and K * b_bar at t, which sum to one: scalars, or [B, 1].

    What rounding leaves of 1 - alpha_bar - gamma_bar is no replacement: cos^2 + sin^2 misses 1 by 1e-16.
    """
    time = as_float64(t)
    if time.ndim:
        time = time.unsqueeze(-1)
    alpha, gamma = schedule.alpha_bar(time), schedule.gamma_bar(time)
    lost = 1.0 - alpha - gamma
    return alpha, gamma, torch.where(lost > ROUNDING, lost, 0.0)


def positive(x: Tensor) -> Tensor:
    """Replace zeros by one in a denominator that is zero only where its numerator is."""
    return torch.where(x > 0, x, 1.0)


def rates(schedule: Schedule, t: Time) -> Rates:
    """Compute the rates of the continuous-time chain at t, from the slopes of its schedule."""
    with torch.enable_grad():
        time = as_float64(t).detach().clone().requires_grad_()
        log_kept = schedule.alpha_bar(time).log()
        log_unmasked = (1.0 - schedule.gamma_bar(time)).log()
        (lost,) = torch.autograd.grad(log_kept.sum(), time)
        masked = torch.zeros_like(lost)
        if log_unmasked.requires_grad:
            (masked,) = torch.autograd.grad(log_unmasked.sum(), time)
    return Rates(mask=-masked, replace=masked - lost)


def ever_replaces(schedule: Schedule) -> bool:
    """Check whether a token is replaced by a class at any time."""
    return bool((masses(schedule, torch.linspace(0, 1, 1_001, dtype=torch.float64))[2] > 0).any())


def check_chain(schedule: Schedule) -> None:
    """Check that a schedule is that of a Markov chain.

    Raises:
        UserError: If it does not start at the data, does not give probabilities, or remembers what it has forgotten.
    """
    t = torch.linspace(0, 1, 10_001, dtype=torch.float64)
    alpha, gamma, lost = masses(schedule, t)
    name = type(schedule).__name__
    if alpha[0] != 1 or gamma[0] != 0:
        raise UserError(f"schedule {name} does not start at the data: alpha_bar(0) must be 1 and gamma_bar(0) 0")
    if (alpha + gamma > 1 + ROUNDING).any() or (alpha < 0).any():
        raise UserError(f"schedule {name}: alpha_bar and gamma_bar must be probabilities that sum to at most 1")
    unmasked = alpha + lost
    kept = alpha / positive(unmasked)
    # What float64 leaves of a difference to 1, relative to what the ratio is divided by.
    slack = ROUNDING + 1e-15 / positive(unmasked[1:])
    for what, rises in (
        ("gamma_bar falls", gamma.diff(dim=0) < -ROUNDING),
        ("alpha_bar/(1 - gamma_bar) rises", kept.diff(dim=0) > slack),
    ):
        if rises.any():
            where = float(t[int(rises.flatten().nonzero()[0])])
            raise UserError(f"schedule {name}: {what} near t={where:.3g}, so it is no chain that only forgets")
