"""What samplers of Gaussian processes share: the grid, the guided and clipped x0, the walk itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.errors import UserError
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import Denoiser, OnStep, Prediction, Sampler
from trilemma.samplers.gaussian.grids import Grid, times
from trilemma.samplers.guidance import Guidance
from trilemma.samplers.predict import predict


@dataclass(frozen=True)
class GuidedDenoiser:
    """The denoiser under its guidance, as the steps of a Gaussian sampler see it.

    Attributes:
        denoiser: The network.
        process: The process.
        condition: What steers the samples.
        guidance: How branches are combined, and what it adds to the score.
        noise: For the step, and for a denoiser that draws.
        clip: Whether x0 is clipped to the data's bound where the prediction knows it.
    """

    denoiser: Denoiser
    process: GaussianProcess
    condition: Condition
    guidance: Guidance
    noise: NoiseSource
    clip: bool

    def mean(self, xt: Tensor, t: float) -> tuple[Tensor, Prediction]:
        """x0 after guidance and then clipping, in the dtype of the state, and the prediction that holds it.

        Raises:
            ValueError: If the network predicts no x0.
        """
        prediction = predict(self.denoiser, self.process, xt, t, self.condition, self.guidance, self.noise)
        if prediction.x0 is None:
            raise ValueError("a Gaussian sampler needs a network that predicts x0")
        x0 = self._clipped(prediction.x0.to(xt.dtype), prediction)
        return x0, replace(prediction, x0=x0)

    def guided_x0(self, xt: Tensor, t: float) -> tuple[Tensor, Prediction]:
        """As `mean`, moved by sigma^2 / alpha times the guidance's gradient and clipped: its eps is moved by -sigma times that.

        Near pure noise sigma^2 / alpha is in the thousands, and a learned gradient no better than its network: unclipped, one
        step would throw the walk out of the data's range. Where alpha is 0, xt says nothing of the data, and no gradient is
        asked for.
        """
        x0, prediction = self.mean(xt, t)
        if self.guidance.gradient is None or (alpha := float(self.process.alpha(t))) == 0.0:
            return x0, prediction
        gradient = self.guidance.gradient(xt, t, self.condition).to(xt.dtype)
        x0 = self._clipped(x0 + float(self.process.sigma(t)) ** 2 / alpha * gradient, prediction)
        return x0, replace(prediction, x0=x0)

    def _clipped(self, x0: Tensor, prediction: Prediction) -> Tensor:
        if not self.clip or prediction.bound is None:
            return x0
        return x0.clamp(-prediction.bound, prediction.bound)


def step_pairs(grid: list[float]) -> tuple[Tensor, Tensor]:
    """The times t that steps start from and s that they end at, float64 [N] each, to take all coefficients of a walk at once."""
    times = torch.tensor(grid, dtype=torch.float64)
    return times[:-1], times[1:]


class GaussianSampler(Sampler):
    """A walk down a grid of times with the state in float64, so that the batch size changes no more than the network's rounding.

    Args:
        num_steps: Steps N.
        grid: Where they stop; see `Grid`.
        clip: Clip x0 to the data's bound, after guidance, where the model states one.

    Raises:
        UserError: If an option is out of its range.
    """

    process_type = GaussianProcess

    def __init__(self, num_steps: int, *, grid: Grid = "trailing", clip: bool = True) -> None:
        if num_steps < 1:
            raise UserError(f"sampler.num_steps={num_steps}: must be at least 1")
        if grid not in get_args(Grid):
            raise UserError(f"sampler.grid={grid}: choose one of {', '.join(get_args(Grid))}")
        self.num_steps = num_steps
        self.grid: Grid = grid
        self.clip = clip

    def times(self, process: GaussianProcess, t_start: float = 1.0) -> list[float]:
        """The N + 1 times of a walk, from the first down to 0."""
        return times(process.schedule, self.num_steps, self.grid, t_start)

    def check(self, process: Any) -> None:
        """See `Sampler`; the grid must fit too."""
        super().check(process)
        self.times(process)

    @abstractmethod
    def walk(self, xt: Tensor, grid: list[float], guided: GuidedDenoiser) -> Iterator[tuple[Tensor, Prediction]]:
        """Yield the state at grid[1], grid[2], ..., 0, each with the prediction that led to it.

        Args:
            xt: State at grid[0], float64.
            grid: Falling times.
            guided: Sees x0, draws noise, knows the process.
        """

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        process: Any,
        shape: tuple[int, ...],
        *,
        condition: Condition,
        guidance: Guidance,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        x_start: Tensor | None = None,
        t_start: float = 1.0,
    ) -> Tensor:
        """See `Sampler`; x0 is float64, and the state seen by `on_step` too.

        A grid whose first time is below 1 starts from the prior, or from `x_start` at t_start = 1, all the same.

        Raises:
            UserError: If the grid or the steps do not fit the process.
            ValueError: If `t_start` is not in (0, 1], or below 1 without an `x_start`.
        """
        if not 0.0 < t_start <= 1.0:
            raise ValueError(f"t_start={t_start}: must lie in (0, 1]")
        if x_start is None and t_start < 1.0:
            raise ValueError(f"a walk from t_start={t_start} needs the state x_start to start from")
        self.check(process)
        grid = self.times(process, t_start)
        xt = process.prior(shape, noise, dtype=torch.float64) if x_start is None else x_start.double()
        guided = GuidedDenoiser(denoiser, process, condition, guidance, noise, self.clip)
        for step, (xs, prediction) in enumerate(self.walk(xt, grid, guided)):
            xt = xs
            if on_step is not None:
                on_step(step, grid[step + 1], xs, prediction)
        return xt
