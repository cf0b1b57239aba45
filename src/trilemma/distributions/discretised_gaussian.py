"""The discretised Gaussian (Ho et al. 2020, equation 13)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trilemma.distributions.base import OutputDistribution, at_least_float32, location_and_log_scale
from trilemma.distributions.discretised import DiscretisedDistribution
from trilemma.distributions.levels import check_levels
from trilemma.processes.noise import NoiseSource

_NARROW = 1e-5
"""Width below which an interval's mass is density times width, to a relative z^2 4e-12."""


class DiscretisedGaussian(DiscretisedDistribution):
    """A normal distribution rounded to levels, its masses computed in float64. See `DiscretisedDistribution`.

    Args:
        mean: [B, ...].
        log_std: Logarithm of the standard deviation, broadcastable to the mean.
        num_levels: Levels, evenly spaced from -1 to 1; 256 for uint8 images.
    """

    def __init__(self, mean: Tensor, log_std: Tensor, num_levels: int) -> None:
        super().__init__(mean.double(), log_std.double(), num_levels)
        self._dtype = at_least_float32(mean).dtype

    def log_prob(self, x: Tensor) -> Tensor:
        """See `DiscretisedDistribution`."""
        return super().log_prob(x).to(self._dtype)

    def sample(self, noise: NoiseSource) -> Tensor:
        """See `DiscretisedDistribution`."""
        return super().sample(noise).to(self._dtype)

    @property
    def mean(self) -> Tensor:
        """See `DiscretisedDistribution`."""
        return super().mean.to(self._dtype)

    def _log_cdf(self, z: Tensor) -> Tensor:
        out: Tensor = _LogNormalCDF.apply(z)  # type: ignore[no-untyped-call]
        return out

    def _log_interval(self, lower: Tensor, upper: Tensor, width: Tensor) -> Tensor:
        # By symmetry the interval may be mirrored; below 0 both logarithms are accurate.
        flip = lower + upper > 0
        log_near = self._log_cdf(torch.where(flip, -lower, upper))
        log_far = self._log_cdf(torch.where(flip, -upper, lower))
        narrow = width < _NARROW
        gap = torch.where(narrow, -1.0, log_far - log_near)
        middle = 0.5 * (lower + upper)
        density = width.log() - 0.5 * torch.where(narrow, middle, 0.0).square() - 0.5 * math.log(2.0 * math.pi)
        return torch.where(narrow, density, log_near + torch.log(-torch.expm1(gap)))

    def _draw(self, noise: NoiseSource, shape: tuple[int, ...]) -> Tensor:
        return noise.normal(shape, dtype=torch.float64)


class _LogNormalCDF(torch.autograd.Function):
    """Logarithm of the normal CDF, with a gradient that stays accurate in the far tail, where torch's own cancels."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        out: Tensor = torch.special.log_ndtr(z)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        hazard: Tensor = math.sqrt(2.0 / math.pi) / torch.special.erfcx(-z / math.sqrt(2.0))
        return grads[0] * hazard


class DiscretisedGaussianOutput(OutputDistribution):
    """A mean and a standard deviation a subpixel: a network's output is [B, 2 C, H, W], means first.

    Args:
        num_levels: Levels of the images.
        min_log_std: Least logarithm of a standard deviation.
    """

    def __init__(self, num_levels: int = 256, *, min_log_std: float = -7.0) -> None:
        check_levels(num_levels)
        self.num_levels = num_levels
        self.min_log_std = min_log_std

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return 2 * channels

    def __call__(self, parameters: Tensor) -> DiscretisedGaussian:
        """See `OutputDistribution`."""
        return DiscretisedGaussian(*location_and_log_scale(parameters, self.min_log_std), self.num_levels)
