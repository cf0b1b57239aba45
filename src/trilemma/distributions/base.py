"""The interfaces of a distribution, and of the map from a network's output to one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource


class Distribution(ABC):
    """A distribution of data that factorises over elements in order, each with a probability or density given those before.

    Images are [B, C, H, W] in [-1, 1]; the parameters say what shape the data has, and their first axis is the images.
    """

    @abstractmethod
    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw data, [B, ...]."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-probability (discrete) or log-density (continuous) in nats of each element, shaped like x.

        Float32 or better, whatever the dtype of x; summed over the elements of an image it is that of the image.
        """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of the data, shaped like them."""

    def tempered(self, temperature: float) -> Self:
        """Sharpen (temperature below 1) or flatten (above 1) the distribution.

        Raises:
            UserError: If the literature defines no temperature for this distribution.
        """
        del temperature
        raise UserError(f"temperature: {type(self).__name__} defines none; leave it at 1")


class OutputDistribution(ABC):
    """Converts the output of a decoder or a pixel model to a distribution of images."""

    @abstractmethod
    def num_parameters(self, channels: int) -> int:
        """Count the output channels P that a network of images with `channels` channels needs."""

    @abstractmethod
    def __call__(self, parameters: Tensor) -> Distribution:
        """Convert the network's output [B, P, H, W] to a distribution."""


def at_least_float32(x: Tensor) -> Tensor:
    """Convert to float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Check that a temperature is positive and finite.

    Raises:
        UserError: If it is not a positive number.
    """
    if not 0.0 < temperature < math.inf:
        raise UserError(f"temperature={temperature}: must be a positive number; 1 changes nothing")


def location_and_log_scale(parameters: Tensor, min_log_scale: float) -> tuple[Tensor, Tensor]:
    """Split the channels of [B, 2 C, H, W] into locations and log-scales, the latter bounded below by `min_log_scale`.

    Raises:
        ValueError: If the number of channels is odd.
    """
    if parameters.shape[1] % 2:
        raise ValueError(f"{parameters.shape[1]} output channels cannot hold a location and a scale of each channel")
    location, log_scale = at_least_float32(parameters).chunk(2, 1)
    return location, log_scale.clamp(min=min_log_scale)
