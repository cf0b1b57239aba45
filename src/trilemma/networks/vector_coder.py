"""Images to and from one vector, through the grid of a convolutional network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.given import check_given
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder


class VectorEncoder(nn.Module):
    """An `ImageEncoder` to a grid of 1 x 1: a trunk to a grid of features, then one hidden layer.

    Args:
        trunk: Images to a grid of features.
        image_shape: (C, H, W).
        hidden_dim: Width of the hidden layer.
        out_channels: Width of the vector: of a VAE the means and the log-variances.
        condition_dim: Width of the pooled condition; None where there is none.

    Raises:
        UserError: If the trunk reads no images of that size.
    """

    def __init__(
        self,
        *,
        trunk: ImageEncoder,
        image_shape: Sequence[int],
        hidden_dim: int,
        out_channels: int,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        _, self.height, self.width = image_shape
        num_features = trunk.out_channels * math.prod(trunk.code_size(self.height, self.width))
        self.in_channels, self.out_channels, self.condition_dim = trunk.in_channels, out_channels, condition_dim
        self.trunk = trunk
        self.hidden = nn.Linear(num_features + (condition_dim or 0), hidden_dim)
        self.last = nn.Linear(hidden_dim, out_channels)

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """See `ImageEncoder`."""
        if (height, width) != (self.height, self.width):
            raise UserError(
                f"model.encoder.image_shape is of {self.height}x{self.width} images, and the data are {height}x{width}"
            )
        return 1, 1

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def forward(self, images: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Encode images [B, C, H, W], given conditions [B, condition_dim], as vectors [B, out_channels, 1, 1]."""
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        features = F.relu(self.trunk(images)).flatten(1)
        if pooled is not None:
            features = torch.cat([features, pooled], dim=1)
        vectors: Tensor = self.last(F.relu(self.hidden(features)))
        return vectors[:, :, None, None]


class VectorDecoder(nn.Module):
    """An `ImageDecoder` of a grid of 1 x 1: one hidden layer to a grid of features, then a trunk to as many channels as that has.

    Args:
        trunk: A grid of features to features of every pixel.
        image_shape: (C, H, W).
        hidden_dim: Width of the hidden layer.
        in_channels: Width d of the vector.
        condition_dim: Width of the pooled condition; None where there is none.

    Raises:
        UserError: If the trunk gives no images of that size.
    """

    def __init__(
        self,
        *,
        trunk: ImageDecoder,
        image_shape: Sequence[int],
        hidden_dim: int,
        in_channels: int,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        _, height, width = image_shape
        rows, columns = trunk.image_size(1, 1)
        self.grid = (trunk.in_channels, height // rows, width // columns)
        self.size = trunk.image_size(*self.grid[1:])
        if self.size != (height, width):
            raise UserError(
                f"model.decoder makes images {rows} times as large as its grid, which {height}x{width} is no multiple of: set "
                "model.decoder.trunk.num_upsamples"
            )
        self.in_channels, self.out_channels, self.condition_dim = in_channels, trunk.out_channels, condition_dim
        self.hidden = nn.Linear(in_channels + (condition_dim or 0), hidden_dim)
        self.spread = nn.Linear(hidden_dim, math.prod(self.grid))
        self.trunk = trunk

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """See `ImageDecoder`."""
        if (height, width) != (1, 1):
            raise UserError(
                f"a VectorDecoder reads one vector an image, not a grid of {height}x{width}: take a VectorEncoder"
            )
        return self.size

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def forward(self, vectors: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Decode vectors [B, d, 1, 1], given conditions [B, condition_dim], to features [B, out_channels, H, W]."""
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        given = vectors.flatten(1)
        if pooled is not None:
            given = torch.cat([given, pooled], dim=1)
        grid = F.relu(self.spread(F.relu(self.hidden(given)))).view(-1, *self.grid)
        return F.relu(self.trunk(grid))
