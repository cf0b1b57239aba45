"""What a distribution is, and what turns a network's output into one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource


class Distribution(ABC):
    """A distribution of data of which every element, given those before it, has a probability or a density.

    Images are [B, C, H, W] in [-1, 1]; the parameters say what shape the data has, and their first axis is the images.
    """

    @abstractmethod
    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw data, [B, ...]."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability (discrete) or log-density (continuous) in nats of each element, shaped like x.

        Float32 or better, whatever the dtype of x; summed over the elements of an image it is that of the image.
        """

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """Mean of the data, shaped like them."""

    def tempered(self, temperature: float) -> Self:
        """The distribution sharpened (below 1) or flattened (above 1).

        Raises:
            UserError: If the literature defines no temperature for this distribution.
        """
        del temperature
        raise UserError(f"temperature: {type(self).__name__} defines none; leave it at 1")


class OutputDistribution(ABC):
    """Turns a network's output into a distribution of images; what a decoder or a pixel model is given."""

    @abstractmethod
    def num_parameters(self, channels: int) -> int:
        """Output channels P that a network of images with `channels` channels needs."""

    @abstractmethod
    def __call__(self, parameters: Tensor) -> Distribution:
        """The distribution that the network's output [B, P, H, W] stands for."""


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, or float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_temperature(temperature: float) -> None:
    """Check that a temperature is one.

    Raises:
        UserError: If it is not a positive number.
    """
    if not 0.0 < temperature < math.inf:
        raise UserError(f"temperature={temperature}: must be a positive number; 1 changes nothing")


def location_and_log_scale(parameters: Tensor, min_log_scale: float) -> tuple[Tensor, Tensor]:
    """Halves of the channels of [B, 2 C, H, W]: locations, and logarithms of scales, kept from below `min_log_scale`.

    Raises:
        ValueError: If the number of channels is odd.
    """
    if parameters.shape[1] % 2:
        raise ValueError(f"{parameters.shape[1]} output channels cannot hold a location and a scale of each channel")
    location, log_scale = at_least_float32(parameters).chunk(2, 1)
    return location, log_scale.clamp(min=min_log_scale)
