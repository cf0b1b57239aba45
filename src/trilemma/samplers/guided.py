"""The denoiser under a guidance: all branches of the condition run as one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import Denoiser, Prediction
from trilemma.samplers.guidance import Guidance


@dataclass(frozen=True)
class GuidedDenoiser:
    """A denoiser under its guidance, as the steps of a sampler see it.

    Attributes:
        denoiser: The network.
        process: Its process.
        condition: Condition of the samples.
        guidance: How branches of the condition are combined, and what it adds to the score.
        noise: Source of randomness of the step, and of a denoiser that draws; all branches see the same draw.
    """

    denoiser: Denoiser
    process: Any
    condition: Condition
    guidance: Guidance
    noise: NoiseSource

    def predict(self, xt: Tensor, t: float) -> Prediction:
        """Run the denoiser under the branches of the guidance, as one batch, and let the guidance combine them.

        Args:
            xt: State [B, ...].
            t: Its time; the denoiser sees it [B], in the dtype of a floating state, else float32.

        Returns:
            The guided prediction of the B images.
        """
        branches = self.guidance.branches(self.condition, t)
        num = len(branches)
        dtype = xt.dtype if xt.is_floating_point() else torch.float32
        times = torch.full((num * len(xt),), t, device=xt.device, dtype=dtype)
        if num == 1:
            predictions = [self.denoiser(xt, times, branches[0], self.noise)]
        else:
            repeated = xt.repeat(num, *[1] * (xt.ndim - 1))
            stacked = self.denoiser(repeated, times, Condition.cat(branches), _Shared(self.noise, num))
            predictions = _split(stacked, num, len(xt))
        return self.guidance.on_prediction(predictions, self.process, xt, t)


def _split(prediction: Prediction, num: int, batch_size: int) -> list[Prediction]:
    """Split a prediction of `num` stacked branches; attributes without an image axis are shared by all."""

    def parts(field: Tensor | None) -> list[Tensor | None]:
        if field is None or field.ndim == 0 or len(field) != num * batch_size:
            return [field] * num
        return list(field.chunk(num))

    fields = zip(
        parts(prediction.log_x0),
        parts(prediction.x0),
        parts(prediction.variance_fraction),
        parts(prediction.x0_variance),
        strict=True,
    )
    return [
        replace(prediction, log_x0=log_x0, x0=x0, variance_fraction=fraction, x0_variance=variance)
        for log_x0, x0, fraction, variance in fields
    ]


class _Shared(NoiseSource):
    """A noise source for `num` stacked copies of a batch: each copy sees the numbers that the batch alone would see."""

    def __init__(self, noise: NoiseSource, num: int) -> None:
        self.device = noise.device
        self._noise = noise
        self._num = num

    def uniform(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `NoiseSource`."""
        return self._repeat(self._noise.uniform(self._one(shape), dtype))

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """See `NoiseSource`."""
        return self._repeat(self._noise.normal(self._one(shape), dtype))

    def _one(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0] // self._num, *shape[1:])

    def _repeat(self, drawn: Tensor) -> Tensor:
        return drawn.repeat(self._num, *[1] * (drawn.ndim - 1))
