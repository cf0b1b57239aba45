"""The loop that all denoising samplers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import Denoiser, OnStep, Prediction, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.samplers.guided import GuidedDenoiser


class DenoisingSampler(Sampler):
    """A sampler that follows a (process, denoiser) pair from noise to data; subclasses define a step.

    Attributes:
        num_steps: Number of steps.
        state_dtype: Of the state; that of the prior where None.
    """

    num_steps: int
    state_dtype: ClassVar[torch.dtype | None] = None

    @abstractmethod
    def times(self, process: Any, t_start: float = 1.0) -> Sequence[float]:
        """List the decreasing times of a trajectory: the start, the end of each step, and 0."""

    @abstractmethod
    def trajectory(
        self, xt: Tensor, times: Sequence[float], denoiser: GuidedDenoiser
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """Yield the state at times[1], times[2], ..., 0, each with the prediction that led to it.

        Args:
            xt: State at times[0].
            times: See `times`.
            denoiser: The network under its guidance; it knows the process and draws noise.
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
        """Draw x0.

        Args:
            denoiser: The network.
            process: The noise process the network was trained on.
            shape: Shape of x0, batch first.
            condition: Condition of the samples; guidance uses its `null` twin.
            guidance: How branches of the condition are combined.
            noise: Source of all randomness.
            on_step: Called after each step.
            x_start: State to start from at time `t_start`; the prior where None.
            t_start: Where the trajectory begins, in (0, 1].

        Returns:
            x0, shaped `shape`.

        Raises:
            UserError: If the sampler does not fit the process.
            ValueError: If `t_start` is not in (0, 1], or below 1 without an `x_start`.
        """
        if not 0.0 < t_start <= 1.0:
            raise ValueError(f"t_start={t_start}: must lie in (0, 1]")
        if x_start is None and t_start < 1.0:
            raise ValueError(f"a trajectory from t_start={t_start} needs the state x_start to start from")
        self.check(process)
        times = self.times(process, t_start)
        xt = process.prior(shape, noise) if x_start is None else x_start
        if self.state_dtype is not None:
            xt = xt.to(self.state_dtype)
        guided = GuidedDenoiser(denoiser, process, condition, guidance, noise)
        for step, (xs, prediction) in enumerate(self.trajectory(xt, times, guided)):
            xt = xs
            if on_step is not None:
                on_step(step, times[step + 1], xs, prediction)
        return xt
