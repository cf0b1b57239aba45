"""Time grids: decreasing times t_0 > ... > t_N = 0 of the N steps of a trajectory.

On a chain of T steps the points are those of its grid i / T, i = 1..T (DDPM's index plus one); "karras" alone may lie between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch

from trilemma.errors import UserError
from trilemma.processes.gaussian.schedules import GaussianSchedule

Grid = Literal["trailing", "uniform", "linspace", "quadratic", "karras"]
"""Spacing of the steps; N of them below t_start, T the length of the chain.

- "trailing": t_start i / N, i = N..0, rounded to the chain.
- "uniform": DDIM's, indices floor(k T / N), k = 0..N-1: from 0 up, never the last (Song et al. 2021).
- "linspace": improved DDPM's, indices round(k (T - 1) / (N - 1)): both ends (Nichol and Dhariwal 2021, section 4).
- "quadratic": DDIM's, indices floor of linspace(0, sqrt(0.8 T), N)^2, an index that is taken giving the next one (Song et
  al. 2021, appendix D.2, repeats it, which spends a call on no step).
- "karras": sigma / alpha to the power 1 / 7 falls evenly to the schedule's least noise, then to 0 (Karras et al. 2022, eq. 5).
"""

RHO = 7.0


def times(schedule: GaussianSchedule, num_steps: int, grid: Grid, t_start: float = 1.0) -> list[float]:
    """Compute the times of a trajectory of `num_steps` from `t_start` down to 0.

    A trajectory from t_start < 1 begins there, and the grid covers the rest of the chain.

    Args:
        schedule: Its chain is what the grid lies on; its noise is what "karras" spaces.
        num_steps: N.
        grid: See `Grid`.
        t_start: In (0, 1].

    Returns:
        N + 1 falling numbers, the last 0.

    Raises:
        UserError: If the chain has fewer steps, or the grid does not fit the schedule.
    """
    length = None if schedule.num_steps is None else max(1, math.floor(t_start * schedule.num_steps + 1e-6))
    if length is not None and num_steps > length:
        where = "has" if t_start == 1.0 else f"has, below t={t_start:g},"
        raise UserError(f"sampler.num_steps={num_steps}: the chain {where} {length} steps; take at most so many")
    if grid == "karras":
        found = _karras(schedule, num_steps, t_start)
    elif length is None or schedule.num_steps is None:
        if grid != "trailing":
            raise UserError(
                f"sampler.grid={grid} counts the steps of a chain, and {type(schedule).__name__} is continuous: take "
                "trailing, or karras where the schedule is not a straight path"
            )
        found = [t_start * i / num_steps for i in range(num_steps, 0, -1)]
    else:
        indices = _INDICES[grid](num_steps, length)
        found = [i / schedule.num_steps for i in reversed(indices)]
        if t_start < 1.0:
            found[0] = t_start
    return [*found, 0.0]


def _trailing(num_steps: int, length: int) -> list[int]:
    return [round(length * i / num_steps) for i in range(1, num_steps + 1)]


def _uniform(num_steps: int, length: int) -> list[int]:
    return [k * length // num_steps + 1 for k in range(num_steps)]


def _linspace(num_steps: int, length: int) -> list[int]:
    if num_steps == 1:
        return [length]  # from t_start: a single step from the least noise would denoise nothing
    return [round(k * (length - 1) / (num_steps - 1)) + 1 for k in range(num_steps)]


def _quadratic(num_steps: int, length: int) -> list[int]:
    found: list[int] = []
    top = math.sqrt(0.8 * length) if num_steps > 1 else 0.0
    for k in range(num_steps):
        index = math.floor((top * k / max(1, num_steps - 1)) ** 2 + 1e-9)
        found.append(max(index + 1, found[-1] + 1 if found else 1))
    return found if num_steps > 1 else [math.floor(0.8 * length) + 1]


_INDICES: dict[Grid, Callable[[int, int], list[int]]] = {
    "trailing": _trailing,
    "uniform": _uniform,
    "linspace": _linspace,
    "quadratic": _quadratic,
}
"""Rising indices plus one, 1..length."""


def _karras(schedule: GaussianSchedule, num_steps: int, t_start: float) -> list[float]:
    if float(schedule.alpha(t_start)) == 0.0:
        raise UserError(
            "sampler.grid=karras spaces sigma / alpha, which is infinite where this schedule starts: take trailing"
        )
    if schedule.min_time >= t_start:
        if num_steps > 1:
            raise UserError(f"sampler.num_steps={num_steps}: no room for them below t={t_start:g}; take 1")
        return [t_start]
    # sigma / alpha = exp(-log_snr / 2)
    high, low = (math.exp(-0.5 * float(schedule.log_snr(t)) / RHO) for t in (t_start, schedule.min_time))
    step = torch.arange(num_steps, dtype=torch.float64) / max(1, num_steps - 1)
    ratio = (high + step * (low - high)) ** RHO
    found: list[float] = schedule.time_of_log_snr(-2.0 * ratio.log()).tolist()
    found[0] = t_start  # exact, free of the inverse's rounding
    if num_steps > 1:
        found[-1] = schedule.min_time
    return found
