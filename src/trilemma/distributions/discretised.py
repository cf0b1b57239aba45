"""A continuous distribution rounded to the levels of images."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from trilemma.distributions.base import Distribution, at_least_float32, check_temperature
from trilemma.distributions.levels import check_levels, level_index, level_value, lower_edge
from trilemma.processes.noise import NoiseSource

_BLOCK_ELEMENTS = 2**22
"""Elements of a temporary of the mean over levels."""


class DiscretisedDistribution(Distribution):
    """A symmetric distribution of location and scale, rounded to levels; the outermost levels hold the tails.

    Args:
        mean: Location, [B, ...].
        log_scale: Logarithm of the scale, broadcastable to the location.
        num_levels: Levels, evenly spaced from -1 to 1; 256 for uint8 images.

    Raises:
        UserError: If there are fewer than 2 levels.
    """

    def __init__(self, mean: Tensor, log_scale: Tensor, num_levels: int) -> None:
        check_levels(num_levels)
        self.location = at_least_float32(mean)
        self.log_scale = at_least_float32(log_scale)
        self.num_levels = num_levels

    @abstractmethod
    def _log_cdf(self, z: Tensor) -> Tensor:
        """Compute the logarithm of the standard distribution's CDF."""

    @abstractmethod
    def _log_interval(self, lower: Tensor, upper: Tensor, width: Tensor) -> Tensor:
        """Compute the log-mass of the standard distribution between `lower` and `upper`, `width` apart."""

    @abstractmethod
    def _draw(self, noise: NoiseSource, shape: tuple[int, ...]) -> Tensor:
        """Draw from the standard distribution, float64."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-probability in nats of the level nearest to each element of x, [B, ...]."""
        index = level_index(x, self.num_levels)
        inverse, distance = torch.exp(-self.log_scale), 2.0 / (self.num_levels - 1)
        # Neighbours share the number of their edge, so that the levels' masses sum to one despite rounding.
        edges = (lower_edge(i, self.num_levels, self.location.dtype) for i in (index, index + 1))
        lower, upper = ((edge - self.location) * inverse for edge in edges)
        inside = self._log_interval(lower, upper, distance * inverse)
        bottom, top = self._log_cdf(upper), self._log_cdf(-lower)
        return torch.where(index == 0, bottom, torch.where(index == self.num_levels - 1, top, inside))

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw values on the levels, shaped like the location."""
        drawn = self._draw(noise, tuple(self.location.shape))
        value = self.location.double() + self.log_scale.double().exp() * drawn
        return level_value(level_index(value, self.num_levels), self.num_levels, self.location.dtype)

    @property
    def mean(self) -> Tensor:
        """Mean of the levels, shaped like the location."""
        # The mean is -1 plus, for each edge between two levels, their distance times the mass above it.
        levels = torch.arange(1, self.num_levels, device=self.location.device)
        edges = lower_edge(levels, self.num_levels, self.location.dtype)
        inverse = torch.exp(-self.log_scale).unsqueeze(-1)
        passed = torch.zeros_like(self.location)
        for block in torch.split(edges, max(1, _BLOCK_ELEMENTS // self.location.numel())):
            passed = passed + self._log_cdf((self.location.unsqueeze(-1) - block) * inverse).exp().sum(-1)
        return 2.0 / (self.num_levels - 1) * passed - 1.0

    def tempered(self, temperature: float) -> Self:
        """Multiply the scale by the temperature."""
        check_temperature(temperature)
        return type(self)(self.location, self.log_scale + math.log(temperature), self.num_levels)
