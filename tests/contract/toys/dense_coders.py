"""Images to and from one vector."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from trilemma.codecs.base import image_shape_of
from trilemma.errors import UserError


class DenseEncoder(nn.Module):
    """An `ImageEncoder` to a grid of 1 x 1: one hidden layer.

    Args:
        image_shape: (C, H, W).
        hidden_dim: Width of the hidden layer.
        out_channels: Width d of the latents.
    """

    def __init__(self, *, image_shape: Sequence[int], hidden_dim: int, out_channels: int) -> None:
        super().__init__()
        self.image_shape = image_shape_of(image_shape)
        self.in_channels, self.out_channels = self.image_shape[0], out_channels
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(self.image_shape), hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, out_channels),
        )

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """See `ImageEncoder`."""
        if (height, width) != self.image_shape[1:]:
            raise UserError(f"a dense encoder of {self.image_shape[1:]} pixels reads no images of {(height, width)}")
        return 1, 1

    def forward(self, images: Tensor) -> Tensor:
        """Latents [B, d, 1, 1] of images [B, C, H, W]."""
        latents: Tensor = self.layers(images)[:, :, None, None]
        return latents


class DenseDecoder(nn.Module):
    """An `ImageDecoder` of a grid of 1 x 1: one hidden layer.

    Args:
        in_channels: Width d of the latents.
        hidden_dim: Width of the hidden layer.
        out_channels: Channels of the output.
        image_size: (H, W).
    """

    def __init__(self, *, in_channels: int, hidden_dim: int, out_channels: int, image_size: Sequence[int]) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.output_shape = (out_channels, *image_size)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels, hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, math.prod(self.output_shape)),
        )

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """See `ImageDecoder`."""
        if (height, width) != (1, 1):
            raise UserError(f"a dense decoder reads one vector an image, not a grid of {(height, width)}")
        return self.output_shape[1], self.output_shape[2]

    def forward(self, latents: Tensor) -> Tensor:
        """Output [B, out_channels, H, W] of latents [B, d, 1, 1]."""
        output: Tensor = self.layers(latents)
        return output.view(-1, *self.output_shape)
