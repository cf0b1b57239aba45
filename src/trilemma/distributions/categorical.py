"""Classes."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from trilemma.distributions.base import Distribution, OutputDistribution, at_least_float32, check_temperature
from trilemma.distributions.truncation import truncate
from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource


class Categorical(Distribution):
    """One of K classes at every position.

    Args:
        logits: Unnormalised log-probabilities, [B, ..., K]; -inf for a class that cannot be.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = at_least_float32(logits)

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw classes int64 [B, ...], exact in the tail."""
        return noise.categorical(self.logits.softmax(-1))

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute the log-probability in nats of classes x, int64 [B, ...]."""
        return self.logits.log_softmax(-1).gather(-1, x.unsqueeze(-1)).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """Mean number of the class, [B, ...]: of use where the classes are in an order, such as levels."""
        classes = torch.arange(self.logits.shape[-1], device=self.logits.device, dtype=self.logits.dtype)
        return (self.logits.softmax(-1) * classes).sum(-1)  # a product of matrices would be autocast

    def tempered(self, temperature: float) -> Self:
        """Divide the logits by the temperature."""
        check_temperature(temperature)
        return type(self)(self.logits / temperature)

    def sharpened(self, *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0) -> Self:
        """Apply the temperature, then keep the `top_k` likeliest classes, then the smallest set that holds `top_p`.

        Equal classes are kept or dropped together: kept where the last place is among them.

        Sources: Fan et al. 2018, section 5.4 (top-k); Holtzman et al. 2020, section 3.1 (top-p).

        Args:
            temperature: Divides the logits; below 1 sharpens.
            top_k: Number of classes kept; None keeps all.
            top_p: Probability kept, in (0, 1]; 1 keeps all.

        Raises:
            UserError: If an option is out of its range.
        """
        if top_k is not None and top_k < 1:
            raise UserError(f"top_k={top_k}: at least one class must be left; 1 takes the likeliest")
        if not 0.0 < top_p <= 1.0:
            raise UserError(f"top_p={top_p}: must lie in (0, 1]; 1 keeps every class")
        logits = self.tempered(temperature).logits
        if top_k is not None and top_k < logits.shape[-1]:
            last = logits.topk(top_k, -1).values[..., -1:]
            logits = logits.masked_fill(logits < last, -torch.inf)
        return type(self)(truncate(logits, top_p))


class CategoricalOutput(OutputDistribution):
    """K logits a channel, for tokens int64 [B, C, H, W]. A network's output is [B, C K, H, W], channel by channel.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise UserError(f"num_classes={num_classes}: a categorical distribution needs at least 2 classes")
        self.num_classes = num_classes

    def num_parameters(self, channels: int) -> int:
        """See `OutputDistribution`."""
        return channels * self.num_classes

    def __call__(self, parameters: Tensor) -> Categorical:
        """See `OutputDistribution`."""
        return Categorical(class_logits(parameters, self.num_classes))


def class_logits(parameters: Tensor, num_classes: int) -> Tensor:
    """Reshape the output [B, C K, H, W] of a network to logits [B, C, H, W, K].

    Raises:
        ValueError: If the number of channels is not a multiple of K.
    """
    batch, num_parameters, height, width = parameters.shape
    if num_parameters % num_classes:
        raise ValueError(f"{num_parameters} output channels are not a whole number of logits for {num_classes} classes")
    return parameters.view(batch, -1, num_classes, height, width).permute(0, 1, 3, 4, 2)
