"""Distances of images as a trained network sees them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureMaps(ABC):
    """A frozen network whose grids of features are compared.

    It is no module: its weights belong to no checkpoint, and are read when the first images come, so a model is rebuilt without them.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    @abstractmethod
    def load(self) -> nn.Module:
        """Load the network.

        Raises:
            UserError: If its file is missing or wrong.
        """

    def build(self) -> nn.Module:
        """Build the network for a plan, which needs no weights."""
        return self.load()

    def check(self, num_channels: int) -> None:
        """Check that the network can be loaded and reads images of so many channels.

        Raises:
            UserError: If not.
        """
        self.network(torch.device("cpu"))

    @abstractmethod
    def maps(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """Compute grids [B, c, h, w] of images [B, C, H, W] in [-1, 1]."""

    def channel_weights(self, network: nn.Module) -> list[Tensor] | None:
        """Get the weight of each channel of each grid, [c]; None where all of them are 1."""
        return None

    def network(self, device: torch.device) -> nn.Module:
        """Get the network on a device, frozen; load it the first time."""
        if self._network is None:
            network = self.build() if device.type == "meta" else self.load()
            self._network = network.requires_grad_(False).eval()
        return self._network.to(device)


class PerceptualDistance(nn.Module):
    """Mean squared distance of feature maps whose vectors have length one, averaged over positions, summed over grids.

    Source: Zhang et al. 2018 (LPIPS), equation 1.

    Args:
        features: Whose feature maps.
    """

    def __init__(self, features: FeatureMaps) -> None:
        super().__init__()
        self.features = features

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        """Compute the distance of images [B, C, H, W] to their reconstructions, [B]; gradients reach the reconstructions."""
        network = self.features.network(images.device)
        with torch.no_grad():
            targets = self.features.maps(network, images)
        maps = self.features.maps(network, reconstruction)
        weights = self.features.channel_weights(network) or [x.new_ones(x.shape[1]) for x in maps]
        distances = [
            ((_normalised(x) - _normalised(y)).square().movedim(1, -1) @ weight).mean((1, 2))
            for x, y, weight in zip(maps, targets, weights, strict=True)
        ]
        return torch.stack(distances).sum(0)


def _normalised(x: Tensor) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.normalize(wide, dim=1, eps=1e-10)
