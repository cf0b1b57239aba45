"""The convolutions of VGG-16."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen 3 x 3 convolutions in five stages, each but the last followed by max-pooling.

    Names of weights are those of torchvision (`features.0.weight`, ...). Source: Simonyan and Zisserman 2015, table 1, column D.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for stage in _STAGES:
            for wider in stage:
                layers += [nn.Conv2d(width, wider, 3, padding=1), nn.ReLU()]
                width = wider
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the grids at the end of each stage, [B, c, h, w], of normalised images [B, 3, H, W]."""
        maps: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(images)
                images = layer(images)
            else:
                images = F.relu(images) if isinstance(layer, nn.ReLU) else layer(images)
        return [*maps, images]
