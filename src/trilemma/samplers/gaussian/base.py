"""What samplers of Gaussian processes share: the grid, and the guided and clipped x0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.samplers.base import Prediction
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.gaussian.grids import Grid, times
from trilemma.samplers.guided import GuidedDenoiser


def conditional_x0(denoiser: GuidedDenoiser, xt: Tensor, t: float, *, clip: bool) -> tuple[Tensor, Prediction]:
    """Predict x0 in the dtype of the state, guided and then clipped, with the prediction it comes from.

    Args:
        denoiser: The network under its guidance.
        xt: State [B, ...].
        t: Its time.
        clip: Whether x0 is clipped to the data's bound where the prediction knows it.

    Raises:
        ValueError: If the network predicts no x0.
    """
    prediction = denoiser.predict(xt, t)
    if prediction.x0 is None:
        raise ValueError("a Gaussian sampler needs a network that predicts x0")
    x0 = _clipped(prediction.x0.to(xt.dtype), prediction, clip)
    return x0, replace(prediction, x0=x0)


def guided_x0(denoiser: GuidedDenoiser, xt: Tensor, t: float, *, clip: bool) -> tuple[Tensor, Prediction]:
    """Predict x0 as `conditional_x0`, plus sigma^2 / alpha times the guidance's gradient, then clip: eps moves by -sigma times it.

    Near pure noise sigma^2 / alpha is in the thousands and amplifies the error of a learned gradient: unclipped, one
    step would move the state out of the data's range. Where alpha is 0, xt is independent of the data, and no gradient is
    computed.
    """
    x0, prediction = conditional_x0(denoiser, xt, t, clip=clip)
    gradient_of = denoiser.guidance.gradient
    if gradient_of is None or (alpha := float(denoiser.process.alpha(t))) == 0.0:
        return x0, prediction
    gradient = gradient_of(xt, t, denoiser.condition).to(xt.dtype)
    x0 = _clipped(x0 + float(denoiser.process.sigma(t)) ** 2 / alpha * gradient, prediction, clip)
    return x0, replace(prediction, x0=x0)


def _clipped(x0: Tensor, prediction: Prediction, clip: bool) -> Tensor:
    if not clip or prediction.bound is None:
        return x0
    return x0.clamp(-prediction.bound, prediction.bound)


def step_pairs(grid: Sequence[float]) -> tuple[Tensor, Tensor]:
    """List the times t that steps start from and s that they end at, float64 [N] each, to compute all coefficients at once."""
    times = torch.tensor(grid, dtype=torch.float64)
    return times[:-1], times[1:]


class GaussianSampler(DenoisingSampler):
    """Steps down a grid of times with the state in float64, so that only the network rounds differently with the batch size.

    A grid whose first time is below 1 also starts from the prior, or from `x_start` at t_start = 1.

    Args:
        num_steps: Steps N.
        grid: Where they end; see `Grid`.
        clip: Clip x0 to the data's bound, after guidance, where the model states one.

    Raises:
        UserError: If an option is out of its range.
    """

    draws_from = GaussianProcess
    state_dtype = torch.float64

    def __init__(self, num_steps: int, *, grid: Grid = "trailing", clip: bool = True) -> None:
        if num_steps < 1:
            raise UserError(f"sampler.num_steps={num_steps}: must be at least 1")
        if grid not in get_args(Grid):
            raise UserError(f"sampler.grid={grid}: choose one of {', '.join(get_args(Grid))}")
        self.num_steps = num_steps
        self.grid: Grid = grid
        self.clip = clip

    def times(self, process: GaussianProcess, t_start: float = 1.0) -> Sequence[float]:
        """See `DenoisingSampler`; N + 1 times."""
        return times(process.schedule, self.num_steps, self.grid, t_start)

    def check(self, subject: Any) -> None:
        """See `Sampler`; the grid must fit too."""
        super().check(subject)
        self.times(subject)
