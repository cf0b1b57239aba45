"""The discretised logistic distribution (Kingma et al. 2016, inverse autoregressive flows; Salimans et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.distributions.base import OutputDistribution, location_and_log_scale
from trilemma.distributions.discretised import DiscretisedDistribution
from trilemma.distributions.levels import check_levels
from trilemma.processes.noise import NoiseSource


class DiscretisedLogistic(DiscretisedDistribution):
    """A logistic distribution rounded to levels. See `DiscretisedDistribution`."""

    def _log_cdf(self, z: Tensor) -> Tensor:
        return F.logsigmoid(z)

    def _log_interval(self, lower: Tensor, upper: Tensor, width: Tensor) -> Tensor:
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): without cancellation.
        return F.logsigmoid(upper) + F.logsigmoid(-lower) + torch.log(-torch.expm1(-width))

    def _draw(self, noise: NoiseSource, shape: tuple[int, ...]) -> Tensor:
        return standard_logistic(noise, shape)


def standard_logistic(noise: NoiseSource, shape: tuple[int, ...]) -> Tensor:
    """Draw from the standard logistic distribution by its inverse CDF, float64."""
    u = noise.uniform(shape, dtype=torch.float64).clamp(min=2.0**-54)
    return u.log() - torch.log1p(-u)


class DiscretisedLogisticOutput(OutputDistribution):
    """A location and a scale a subpixel: a network's output is [B, 2 C, H, W], locations first.

    Args:
        num_levels: Levels of the images.
        min_log_scale: Least logarithm of a scale.
    """

    def __init__(self, num_levels: int = 256, *, min_log_scale: float = -7.0) -> None:
        check_levels(num_levels)
        self.num_levels = num_levels
        self.min_log_scale = min_log_scale

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return 2 * channels

    def __call__(self, parameters: Tensor) -> DiscretisedLogistic:
        """See `OutputDistribution`."""
        return DiscretisedLogistic(*location_and_log_scale(parameters, self.min_log_scale), self.num_levels)
