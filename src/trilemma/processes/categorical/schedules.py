"""Noise schedules of the categorical processes: alpha_bar and gamma_bar as functions of t in [0, 1], in float64.

Of a token at time t, alpha_bar(t) is the probability that nothing has happened to it, gamma_bar(t) that it has been
masked, and what is left, K * b_bar(t), that it has been replaced by a class drawn uniformly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from trilemma.errors import UserError

Time = float | Tensor
"""A time in [0, 1]: a number, a scalar tensor, or one time an image [B]."""


def as_float64(t: Time) -> Tensor:
    """Convert the time to float64, same shape; a number gives a scalar on the CPU, which mixes with tensors of any device."""
    return torch.as_tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """Alpha_bar and gamma_bar as functions of time; alpha_bar(0) is 1 exactly."""

    @abstractmethod
    def alpha_bar(self, t: Time) -> Tensor:
        """Compute the probability that a token is unchanged at time t, float64 shaped like t."""

    @abstractmethod
    def gamma_bar(self, t: Time) -> Tensor:
        """Compute the probability that a token is masked at time t, float64 shaped like t."""

    def split(self, mask_fraction: float) -> Schedule:
        """Fill in `mask_fraction` where the schedule leaves that to the process; else return the schedule itself."""
        del mask_fraction
        return self


class VQDiffusionPaper(Schedule):
    """The VQ-Diffusion paper's end points, linear in t: alpha_bar to 0, gamma_bar to 0.9, total replacement to 0.1.

    Tokens are both masked and replaced, so a model trained on it can repair tokens that are wrong.

    Source: Gu et al. 2022, "Vector Quantized Diffusion Model for Text-to-Image Synthesis", section 5.
    """

    def alpha_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        return 1.0 - as_float64(t)

    def gamma_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        return 0.9 * as_float64(t)


class VQDiffusionReleased(Schedule):
    """The end points of VQ-Diffusion's released code: all but pure masking, with a total replacement of 1e-6.

    On the grid i/T, i = 1..T, alpha_bar runs linearly from 0.99999 to 0.000009 and gamma_bar from 0.000009 to
    0.99999; between 0 and 1/T both are interpolated from the identity.

    Source: microsoft/VQ-Diffusion, `alpha_schedule` with its defaults.

    Args:
        num_steps: T.
    """

    def __init__(self, num_steps: int = 100) -> None:
        if num_steps < 2:
            raise UserError(f"schedule.num_steps={num_steps}: the released schedule needs a grid of at least 2 steps")
        self.num_steps = num_steps

    def alpha_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        return self._interpolate(as_float64(t), (1.0, 0.99999, 0.000009))

    def gamma_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        return self._interpolate(as_float64(t), (0.0, 0.000009, 0.99999))

    def _interpolate(self, t: Tensor, knots: tuple[float, float, float]) -> Tensor:
        """Interpolate linearly between the values at 0, 1/T and 1."""
        start, first, last = knots
        i = t * self.num_steps
        tail = first + (i - 1.0) / (self.num_steps - 1) * (last - first)
        return torch.where(i < 1.0, start + i * (first - start), tail)


class SplitSchedule(Schedule):
    """A schedule of alpha_bar alone; a constant fraction of the lost mass goes to the mask, the rest to replacement.

    Args:
        mask_fraction: gamma_bar / (1 - alpha_bar), in [0, 1]; None leaves it to the process: 1 for absorbing, 0 for
            uniform, 0.9 (as in the VQ-Diffusion paper) for mask-and-replace.
    """

    def __init__(self, mask_fraction: float | None = None) -> None:
        if mask_fraction is not None and not 0.0 <= mask_fraction <= 1.0:
            raise UserError(f"schedule.mask_fraction={mask_fraction}: must lie in [0, 1]")
        self.mask_fraction = mask_fraction

    def gamma_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        if self.mask_fraction is None:
            raise ValueError("mask_fraction is undecided: a process decides it by Schedule.split")
        return self.mask_fraction * (1.0 - self.alpha_bar(t))

    def split(self, mask_fraction: float) -> Schedule:
        """See `Schedule`."""
        return self if self.mask_fraction is not None else self._with(mask_fraction)

    @abstractmethod
    def _with(self, mask_fraction: float) -> Self:
        """Copy the curve with another split."""


class Linear(SplitSchedule):
    """alpha_bar = 1 - t: masked linearly, as in D3PM's absorbing process (Austin et al. 2021, section 4)."""

    def alpha_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        return 1.0 - as_float64(t)

    def _with(self, mask_fraction: float) -> Self:
        return type(self)(mask_fraction)


class LogLinear(SplitSchedule):
    """Total noise -log(1 - (1 - epsilon) t), as in SEDD and MDLM: alpha_bar is linear, but never zero.

    Source: Lou et al. 2024, "Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution", appendix
        C.

    Args:
        mask_fraction: See `SplitSchedule`.
        epsilon: alpha_bar at t = 1.
    """

    def __init__(self, mask_fraction: float | None = None, *, epsilon: float = 1e-3) -> None:
        super().__init__(mask_fraction)
        if not 0.0 < epsilon < 1.0:
            raise UserError(f"schedule.epsilon={epsilon}: must lie in (0, 1)")
        self.epsilon = epsilon

    def alpha_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        return 1.0 - (1.0 - self.epsilon) * as_float64(t)

    def _with(self, mask_fraction: float) -> Self:
        return type(self)(mask_fraction, epsilon=self.epsilon)


class Cosine(SplitSchedule):
    """alpha_bar = f(t) / f(0), f(t) = cos^2(pi/2 (t + o) / (1 + o)) (Nichol and Dhariwal 2021, equation 17).

    Args:
        mask_fraction: See `SplitSchedule`.
        offset: o, which keeps the first steps from being too small.
    """

    def __init__(self, mask_fraction: float | None = None, *, offset: float = 0.008) -> None:
        super().__init__(mask_fraction)
        if offset < 0.0:
            raise UserError(f"schedule.offset={offset}: must not be negative")
        self.offset = offset

    def alpha_bar(self, t: Time) -> Tensor:
        """See `Schedule`."""
        # The sine of the complement is zero at t = 1 and one at t = 0 exactly; the cosine is neither in floating point.
        quarter = 0.5 * math.pi / (1.0 + self.offset)
        remaining = as_float64(t).neg().add(1.0)
        start = torch.sin(torch.full_like(remaining, quarter))
        return (torch.sin(quarter * remaining) / start) ** 2

    def _with(self, mask_fraction: float) -> Self:
        return type(self)(mask_fraction, offset=self.offset)
