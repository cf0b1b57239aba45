"""Small classifiers whose last hidden layer is the feature space of the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.batch_norm import BatchNorm2d


class FeatureClassifier(nn.Module, ABC):
    """A classifier whose last hidden layer gives features.

    Attributes:
        feature_dim: Width of the features.
    """

    def __init__(self, *, trunk_dim: int, num_classes: int, feature_dim: int, dropout: float) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.project = nn.Linear(trunk_dim, feature_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_dim, num_classes)

    @abstractmethod
    def trunk(self, images: Tensor) -> Tensor:
        """Map images [B, C, H, W] in [-1, 1] to [B, trunk_dim]."""

    @abstractmethod
    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Compute the grids [B, c, h, w] after each stage of the trunk, of images [B, C, H, W] in [-1, 1]."""

    def features(self, images: Tensor) -> Tensor:
        """Compute the last hidden layer after its ReLU, [B, feature_dim], of images [B, C, H, W] in [-1, 1]."""
        return F.relu(self.project(self.trunk(images)))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits [B, num_classes] of images [B, C, H, W] in [-1, 1]."""
        logits: Tensor = self.head(self.dropout(self.features(images)))
        return logits


def _conv(in_channels: int, out_channels: int, *, stride: int = 1, size: int = 3) -> nn.Sequential:
    """Build a convolution followed by batch normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, BatchNorm2d(out_channels))


class SmallConvNet(FeatureClassifier):
    """Convolution, batch normalisation, ReLU and max-pooling, a stage per width; made for 28x28 grey images on a CPU.

    Args:
        in_channels: Channels C of the images.
        image_size: Height and width of the images.
        num_classes: Number of labels.
        channels: Width of each stage; every stage halves the image, rounding down.
        feature_dim: Width of the features.
        dropout: Probability of dropping a feature while training.

    Raises:
        ValueError: If the image is too small for that many stages.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        channels: Sequence[int] = (32, 64, 128),
        feature_dim: int = 128,
        dropout: float = 0.25,
    ) -> None:
        side = image_size >> len(channels)
        if side < 1:
            raise ValueError(f"image_size={image_size} cannot be halved {len(channels)} times")
        super().__init__(
            trunk_dim=channels[-1] * side**2, num_classes=num_classes, feature_dim=feature_dim, dropout=dropout
        )
        layers: list[nn.Module] = []
        width = in_channels
        for wider in channels:
            # Pooling before the ReLU gives the same result on a quarter of the entries.
            layers += [_conv(width, wider), nn.MaxPool2d(2), nn.ReLU()]
            width = wider
        self.layers = nn.Sequential(*layers)

    def trunk(self, images: Tensor) -> Tensor:
        """Compute the last stage's grid, flattened."""
        return self.feature_maps(images)[-1].flatten(1)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """See `FeatureClassifier`."""
        grid, maps = images.contiguous(memory_format=torch.channels_last), []
        for layer in self.layers:
            grid = layer(grid)
            if isinstance(layer, nn.ReLU):
                maps.append(grid)
        return maps


class _ResidualStage(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(in_channels, out_channels, stride=stride)
        self.second = _conv(out_channels, out_channels)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else _conv(in_channels, out_channels, stride=stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, c, h, w]."""
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


class ResidualConvNet(FeatureClassifier):
    """A narrow residual network, for natural images.

    Source: He et al. 2016, section 4.2, with projection shortcuts.

    Args:
        in_channels: Channels C of the images.
        num_classes: Number of labels.
        channels: Width of each stage; every stage but the first halves the image.
        num_blocks: Residual blocks in each stage.
        feature_dim: Width of the features.
        dropout: Probability of dropping a feature while training.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        channels: Sequence[int] = (24, 48, 96),
        num_blocks: int = 2,
        feature_dim: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(trunk_dim=channels[-1], num_classes=num_classes, feature_dim=feature_dim, dropout=dropout)
        self.stem = _conv(in_channels, channels[0])
        blocks: list[nn.Module] = []
        width = channels[0]
        for i, wider in enumerate(channels):
            for j in range(num_blocks):
                blocks.append(_ResidualStage(width, wider, 2 if i > 0 and j == 0 else 1))
                width = wider
        self.num_blocks = num_blocks
        self.blocks = nn.Sequential(*blocks)

    def trunk(self, images: Tensor) -> Tensor:
        """Compute the last stage, averaged over positions."""
        return self.feature_maps(images)[-1].mean(dim=(2, 3))

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """See `FeatureClassifier`."""
        grid, maps = F.relu(self.stem(images.contiguous(memory_format=torch.channels_last))), []
        for i, block in enumerate(self.blocks, start=1):
            grid = block(grid)
            if i % self.num_blocks == 0:
                maps.append(grid)
        return maps
