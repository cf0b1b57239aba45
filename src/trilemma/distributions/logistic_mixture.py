"""Mixtures of discretised logistics whose channels are coupled (Salimans et al. 2017, "PixelCNN++", equation 2, section 2.2)."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from trilemma.distributions.base import Distribution, OutputDistribution, at_least_float32, check_temperature
from trilemma.distributions.levels import check_levels, level_index, level_value
from trilemma.distributions.logistic import DiscretisedLogistic, standard_logistic
from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource


class DiscretisedLogisticMixture(Distribution):
    """A mixture of M components a pixel; all channels of a pixel are of one component.

    Within a component a channel is a discretised logistic whose location moves with the channels before it: for RGB

        mu_g(r) = mu_g + alpha r,    mu_b(r, g) = mu_b + beta r + gamma g

    with r and g the values in [-1, 1]. `log_prob` of a channel is given the channels before it, so that a pixel's sums up.

    Args:
        logits: Of the components, [B, M, H, W].
        means: mu, [B, M, C, H, W].
        log_scales: Logarithms of the scales, [B, M, C, H, W].
        coefficients: alpha, beta, gamma, ... by rows of the lower triangle, [B, M, C (C - 1) / 2, H, W]; none for one
            channel.
        num_levels: Levels, evenly spaced from -1 to 1; 256 for uint8 images.

    Raises:
        UserError: If there are fewer than 2 levels.
        ValueError: If the shapes do not fit.
    """

    def __init__(
        self, logits: Tensor, means: Tensor, log_scales: Tensor, coefficients: Tensor | None, num_levels: int
    ) -> None:
        check_levels(num_levels)
        num_channels = means.shape[2]
        num_coefficients = num_channels * (num_channels - 1) // 2
        if num_coefficients != (0 if coefficients is None else coefficients.shape[2]):
            raise ValueError(f"{num_channels} channels are coupled by {num_coefficients} coefficients")
        if log_scales.shape != means.shape or logits.shape != (*means.shape[:2], *means.shape[3:]):
            raise ValueError("logits, means and log_scales of a mixture are of different components or pixels")
        self.logits = at_least_float32(logits)
        self.means = at_least_float32(means)
        self.log_scales = at_least_float32(log_scales)
        self.coefficients = None if coefficients is None else at_least_float32(coefficients)
        self.num_levels = num_levels

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute log p in nats of the level nearest to each subpixel, given the channels before it, [B, C, H, W]."""
        x = level_value(level_index(x, self.num_levels), self.num_levels, self.means.dtype)
        channels = [x[:, None, c] for c in range(x.shape[1])]
        locations = torch.stack([self._location(c, channels) for c in range(len(channels))], 2)
        of_channel = DiscretisedLogistic(locations, self.log_scales, self.num_levels).log_prob(x[:, None])
        log_weight = self.logits.log_softmax(1).unsqueeze(2)
        up_to = (log_weight + of_channel.cumsum(2)).logsumexp(1)
        return torch.cat([up_to[:, :1], up_to.diff(dim=1)], 1)

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw images [B, C, H, W] on the levels: one component a pixel, then channel by channel."""
        component = noise.categorical(self.logits.softmax(1).movedim(1, -1))[:, None]
        channels: list[Tensor] = []
        for c in range(self.means.shape[2]):
            location = self._location(c, channels).gather(1, component).double()
            scale = self.log_scales[:, :, c].gather(1, component).double().exp()
            drawn = location + scale * standard_logistic(noise, tuple(location.shape))
            channels.append(level_value(level_index(drawn, self.num_levels), self.num_levels, self.means.dtype))
        return torch.cat(channels, 1)

    @property
    def mean(self) -> Tensor:
        """Mean of the levels, [B, C, H, W].

        Exact in the first channel. In the others a component's location takes the channels before it at their means, which
        is exact as far as the levels -1 and 1 do not cut off what a component's location moves.
        """
        channels: list[Tensor] = []
        for c in range(self.means.shape[2]):
            location = self._location(c, channels)
            channels.append(DiscretisedLogistic(location, self.log_scales[:, :, c], self.num_levels).mean)
        return (self.logits.softmax(1).unsqueeze(2) * torch.stack(channels, 2)).sum(1)

    def tempered(self, temperature: float) -> Self:
        """Divide the logits and multiply the scales by the temperature (as Ha and Eck 2018, equation 8)."""
        check_temperature(temperature)
        log_scales = self.log_scales + math.log(temperature)
        return type(self)(self.logits / temperature, self.means, log_scales, self.coefficients, self.num_levels)

    def _location(self, channel: int, before: list[Tensor]) -> Tensor:
        """Compute a channel's locations, [B, M, H, W], given the channels before it, each [B, 1 or M, H, W]."""
        location = self.means[:, :, channel]
        if self.coefficients is not None:
            first = channel * (channel - 1) // 2
            for j in range(channel):
                location = location + self.coefficients[:, :, first + j] * before[j]
        return location


class DiscretisedLogisticMixtureOutput(OutputDistribution):
    """M components a pixel: a network's output holds their logits, locations, log-scales and coefficients, in that order.

    For RGB these are 10 M channels. Coefficients go through tanh, as in the released code.

    Args:
        num_components: M.
        num_levels: Levels of the images.
        min_log_scale: Least logarithm of a scale.

    Raises:
        UserError: If there is no component.
    """

    def __init__(self, num_components: int = 10, num_levels: int = 256, *, min_log_scale: float = -7.0) -> None:
        check_levels(num_levels)
        if num_components < 1:
            raise UserError(f"num_components={num_components}: a mixture needs at least 1 component")
        self.num_components = num_components
        self.num_levels = num_levels
        self.min_log_scale = min_log_scale

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return self.num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def __call__(self, parameters: Tensor) -> DiscretisedLogisticMixture:
        """See `OutputDistribution`.

        Raises:
            ValueError: If no number of channels needs as many parameters.
        """
        channels = 1
        while self.num_parameters(channels) < parameters.shape[1]:
            channels += 1
        if self.num_parameters(channels) != parameters.shape[1]:
            raise ValueError(f"{parameters.shape[1]} output channels do not hold {self.num_components} components")
        per_component = torch.split(at_least_float32(parameters), self.num_components, 1)
        logits, rest = per_component[0], torch.stack(per_component[1:], 2)
        means, log_scales, raw = torch.split(rest, [channels, channels, rest.shape[2] - 2 * channels], 2)
        coefficients = raw.tanh() if channels > 1 else None
        return DiscretisedLogisticMixture(
            logits, means, log_scales.clamp(min=self.min_log_scale), coefficients, self.num_levels
        )
