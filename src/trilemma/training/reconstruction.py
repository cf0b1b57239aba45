"""Reconstruction losses of first stages."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.training.perceptual import PerceptualDistance


class ReconstructionLoss(nn.Module, ABC):
    """A distance that a first stage is trained on. It is a module, so that it may hold a network."""

    def check(self, num_channels: int) -> None:
        """Raise `UserError` where it cannot compare images of so many channels, or lacks a file; called before training."""

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


class WithPerceptual(ReconstructionLoss):
    """A distance of pixels and, times a weight, a distance of what a network sees, which counts for every subpixel.

    Source: Esser et al. 2021 (VQGAN), section 3.1; Rombach et al. 2022, appendix G.

    Args:
        pixels: The distance of pixels.
        perceptual: The distance of feature maps.
        weight: Of the perceptual distance against the mean distance of a subpixel.

    Raises:
        UserError: If the weight is negative.
    """

    def __init__(self, *, pixels: ReconstructionLoss, perceptual: PerceptualDistance, weight: float = 1.0) -> None:
        super().__init__()
        if not weight >= 0:
            raise UserError(f"model.reconstruction.weight={weight} must be at least 0")
        self.pixels = pixels
        self.perceptual = perceptual
        self.weight = weight

    def check(self, num_channels: int) -> None:
        """See `ReconstructionLoss`."""
        if self.weight > 0:
            self.perceptual.features.check(num_channels)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """See `ReconstructionLoss`."""
        distance: Tensor = self.pixels(reconstruction, images)
        if self.weight > 0:
            distance = distance + self.weight * images[0].numel() * self.perceptual(reconstruction, images)
        return distance
