"""Convolutional encoder and decoder of a first stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))).

    Source: van den Oord et al. 2017 (VQ-VAE), section 4.1.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, c, h, w]."""
        branch: Tensor = self.mix(F.relu(self.conv(F.relu(x))))
        return x + branch


def _widths(channels: int, num_halvings: int) -> list[int]:
    """List the widths from the image's side to the code's: halved at each finer grid, down to a quarter of `channels`."""
    if num_halvings < 1 or channels % 4:
        raise ValueError(f"need at least one halving (got {num_halvings}) and channels divisible by 4 (got {channels})")
    return [max(channels >> i, channels // 4) for i in reversed(range(num_halvings))]


class ConvEncoder(nn.Module):
    """Strided convolutions, then residual blocks at the code's resolution, where they are cheap.

    Without normalisation: the depth does not need it, and the latents keep the scale the codebook learns.

    Args:
        in_channels: Channels C of the images.
        channels: Width at the code's resolution; halved at each finer one, down to a quarter.
        out_channels: Width d of the latents.
        num_downsamples: How often height and width are halved.
        num_res_blocks: Number of residual blocks.

    Raises:
        ValueError: If there is nothing to halve or `channels` has no quarter.
    """

    def __init__(
        self, *, in_channels: int, channels: int, out_channels: int, num_downsamples: int, num_res_blocks: int
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_downsamples = in_channels, out_channels, num_downsamples
        layers: list[nn.Module] = []
        width = in_channels
        for wider in _widths(channels, num_downsamples):
            layers += [nn.Conv2d(width, wider, 4, stride=2, padding=1), nn.ReLU()]
            width = wider
        layers += [ResidualBlock(channels) for _ in range(num_res_blocks)]
        layers += [nn.ReLU(), nn.Conv2d(channels, out_channels, 1)]
        self.layers = nn.Sequential(*layers)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width (h, w) of the latents of images of that size.

        Raises:
            UserError: If a side cannot be halved so often.
        """
        factor = 2**self.num_downsamples
        if height % factor or width % factor:
            raise UserError(
                f"images of {height}x{width} cannot be halved {self.num_downsamples} times: "
                f"set data.size to a multiple of {factor}"
            )
        return height // factor, width // factor

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as latents [B, d, h, w]."""
        latents: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        return latents


class ConvDecoder(nn.Module):
    """Residual blocks at the code's resolution, then sub-pixel convolutions up to the image.

    Source of the upsampling: Shi et al. 2016, eq. 4; every convolution runs on the coarser of its two grids.

    Args:
        in_channels: Width d of the latents.
        channels: Width at the code's resolution; halved at each finer one, down to a quarter.
        out_channels: Channels C of the images.
        num_upsamples: How often height and width are doubled.
        num_res_blocks: Number of residual blocks.

    Raises:
        ValueError: If there is nothing to halve or `channels` has no quarter.
    """

    def __init__(
        self, *, in_channels: int, channels: int, out_channels: int, num_upsamples: int, num_res_blocks: int
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_upsamples = in_channels, out_channels, num_upsamples
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1)]
        layers += [ResidualBlock(channels) for _ in range(num_res_blocks)]
        width = channels
        for narrower in [*reversed(_widths(channels, num_upsamples)[:-1]), out_channels]:
            layers += [nn.ReLU(), nn.Conv2d(width, 4 * narrower, 3, padding=1), nn.PixelShuffle(2)]
            width = narrower
        self.layers = nn.Sequential(*layers)

    @property
    def last_layer(self) -> Tensor:
        """Weights of the last convolution, [4C, c, 3, 3]: where gradients of several losses are weighed against each other."""
        return next(layer.weight for layer in reversed(self.layers) if isinstance(layer, nn.Conv2d))

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): one."""
        return [self]

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width (H, W) of the images of latents of that size."""
        return height << self.num_upsamples, width << self.num_upsamples

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, d, h, w] to images [B, C, H, W]; not clipped."""
        images: Tensor = self.layers(latents.contiguous(memory_format=torch.channels_last))
        return images
