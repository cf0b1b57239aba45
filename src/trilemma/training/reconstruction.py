"""Reconstruction losses of first stages."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ReconstructionLoss(nn.Module, ABC):
    """A distance that a first stage is trained on. It is a module, so that it may hold a network."""

    @abstractmethod
    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Compute the distance of each image, summed over its subpixels.

        Args:
            reconstruction: [B, C, H, W], not clipped.
            images: [B, C, H, W] in [-1, 1].

        Returns:
            [B].
        """


class SquaredError(ReconstructionLoss):
    """Sum of (x - y)^2: up to a constant, -2 sigma^2 log N(x; y, sigma^2)."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """See `ReconstructionLoss`."""
        return (reconstruction - images).square().flatten(1).sum(1)


class AbsoluteError(ReconstructionLoss):
    """Sum of |x - y|: up to a constant, -b log Laplace(x; y, b)."""

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """See `ReconstructionLoss`."""
        return (reconstruction - images).abs().flatten(1).sum(1)
