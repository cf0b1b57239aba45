"""Two-valued images."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.distributions.base import Distribution, OutputDistribution, at_least_float32, check_temperature
from trilemma.processes.noise import NoiseSource


class Bernoulli(Distribution):
    """A pixel is on, with value 1, or off, with value `off`.

    What is scored is thresholded half-way: x is on where x > (1 + off) / 2. So with `off` = -1 an image in [-1, 1] counts
    as on where it is above 0, and 0 is off; with `off` = 0 so does one in [0, 1] above 1/2.

    Args:
        logits: Log-odds of on, [B, ...].
        off: Value of a pixel that is off: -1 for images, 0 for bits.
    """

    def __init__(self, logits: Tensor, *, off: float = -1.0) -> None:
        self.logits = at_least_float32(logits)
        self.off = off

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw values of 1 and `off`, shaped like the logits."""
        u = noise.uniform(tuple(self.logits.shape), dtype=torch.float64)
        on = u < self.logits.double().sigmoid()
        return torch.where(on, 1.0, self.off).to(self.logits.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-probability in nats of x thresholded, shaped like x."""
        return F.logsigmoid(torch.where(x > 0.5 * (1.0 + self.off), self.logits, -self.logits))

    @property
    def mean(self) -> Tensor:
        """Mean value, between `off` and 1, shaped like the logits."""
        return self.off + (1.0 - self.off) * self.logits.sigmoid()

    def tempered(self, temperature: float) -> Self:
        """Divide the logits by the temperature."""
        check_temperature(temperature)
        return type(self)(self.logits / temperature, off=self.off)


class BernoulliOutput(OutputDistribution):
    """One logit a subpixel of an image in [-1, 1] that is thresholded at 0."""

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return channels

    def __call__(self, parameters: Tensor) -> Bernoulli:
        """See `OutputDistribution`."""
        return Bernoulli(parameters)
