"""Normal distributions of continuous values."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from trilemma.distributions.base import (
    Distribution,
    OutputDistribution,
    at_least_float32,
    check_temperature,
    location_and_log_scale,
)
from trilemma.processes.noise import NoiseSource


class Normal(Distribution):
    """Independent normal distributions. `log_prob` is a density, not comparable with the probability of levels.

    Args:
        mean: [B, ...].
        log_std: Logarithm of the standard deviation, broadcastable to the mean.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self._mean = at_least_float32(mean)
        self.log_std = at_least_float32(log_std)

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw values shaped like the mean."""
        return self._mean + self.log_std.exp() * noise.normal(tuple(self._mean.shape), dtype=self._mean.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-density in nats, shaped like x."""
        z = (x - self._mean) * torch.exp(-self.log_std)
        return -0.5 * z.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)

    @property
    def mean(self) -> Tensor:
        """The mean, [B, ...]."""
        return self._mean

    def tempered(self, temperature: float) -> Self:
        """Multiply the standard deviation by the temperature (Kingma and Dhariwal 2018, section 6)."""
        check_temperature(temperature)
        return type(self)(self._mean, self.log_std + math.log(temperature))


class NormalOutput(OutputDistribution):
    """A mean a subpixel, and a standard deviation that is learned or fixed. The output is [B, 2 C, H, W] or [B, C, H, W].

    Args:
        log_std: Logarithm of the standard deviation of all subpixels; None learns one of each.
        min_log_std: Least logarithm of a learned standard deviation.
    """

    def __init__(self, log_std: float | None = None, *, min_log_std: float = -7.0) -> None:
        self.log_std = log_std
        self.min_log_std = min_log_std

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return 2 * channels if self.log_std is None else channels

    def __call__(self, parameters: Tensor) -> Normal:
        """See `OutputDistribution`."""
        if self.log_std is not None:
            return Normal(parameters, torch.full((), self.log_std, device=parameters.device))
        return Normal(*location_and_log_scale(parameters, self.min_log_std))
