"""Levels of images, each with a logit of its own."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from trilemma.distributions.base import Distribution, OutputDistribution
from trilemma.distributions.categorical import Categorical, class_logits
from trilemma.distributions.levels import check_levels, level_index, level_value
from trilemma.processes.noise import NoiseSource


class CategoricalLevels(Distribution):
    """One of K levels at every subpixel of an image, treated as unordered (van den Oord et al. 2016, section 2.2).

    Args:
        logits: Unnormalised log-probabilities, [B, C, H, W, K]; the levels run from -1 to 1.
    """

    def __init__(self, logits: Tensor) -> None:
        check_levels(logits.shape[-1])
        self.num_levels = logits.shape[-1]
        self.classes = Categorical(logits)

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw images [B, C, H, W] on the levels."""
        return level_value(self.classes.sample(noise), self.num_levels, self.classes.logits.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-probability in nats of the level nearest to each subpixel of x, [B, C, H, W]."""
        return self.classes.log_prob(level_index(x, self.num_levels))

    @property
    def mean(self) -> Tensor:
        """Mean of the levels, [B, C, H, W]."""
        return self.classes.mean * (2.0 / (self.num_levels - 1)) - 1.0

    def tempered(self, temperature: float) -> Self:
        """Divide the logits by the temperature."""
        return type(self)(self.classes.tempered(temperature).logits)


class CategoricalLevelsOutput(OutputDistribution):
    """K logits a subpixel. A network's output is [B, C K, H, W], channel by channel.

    Args:
        num_levels: K.
    """

    def __init__(self, num_levels: int) -> None:
        check_levels(num_levels)
        self.num_levels = num_levels

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return channels * self.num_levels

    def __call__(self, parameters: Tensor) -> CategoricalLevels:
        """See `OutputDistribution`."""
        return CategoricalLevels(class_logits(parameters, self.num_levels))
