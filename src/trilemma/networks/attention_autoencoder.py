"""The residual encoder and decoder with attention of VQGAN and of latent diffusion's first stages."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.unet.layers import Upsample


class NormResidual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result; where they differ, the shortcut is a 1 x 1 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first_norm = _norm(in_channels)
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.second_norm = _norm(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, in_channels, h, w] to [B, out_channels, h, w]."""
        branch = self.first(F.silu(self.first_norm(x)))
        branch = self.second(F.silu(self.second_norm(branch)))
        transformed: Tensor = self.shortcut(x) + branch
        return transformed


class SingleHeadAttention(nn.Module):
    """x + out(attention(norm(x))), every position of the grid to every other, with one head as wide as the grid.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, c, h, w]."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        seen = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        branch: Tensor = self.out(seen)
        return x + branch


class Halve(nn.Module):
    """A 3 x 3 convolution of stride 2 that is padded on the right and at the bottom alone.

    Args:
        channels: Width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halve [B, c, h, w]."""
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return halved


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def _check(channels: int, channel_mults: Sequence[int]) -> None:
    if channels % 32 or not channel_mults:
        raise ValueError(
            f"channels={channels} must be a multiple of 32, and channel_mults={list(channel_mults)} name a grid or more"
        )


class AttentionEncoder(nn.Module):
    """Residual blocks on ever coarser grids, attention on the coarsest ones, then a 1 x 1 convolution to the latents.

    Source: Esser et al. 2021 (VQGAN), table 7; the layers are those of its released code, the 1 x 1 convolution its `quant_conv`.

    Args:
        in_channels: Channels C of the images.
        image_size: Height and width of the images, which say where there is attention.
        channels: Width of the finest grid, a multiple of 32.
        channel_mults: Width of each grid in multiples of that, the finest first; the grid halves between two.
        num_res_blocks: Residual blocks on each grid.
        attention_resolutions: Sides of the grids whose residual blocks are each followed by attention.
        latent_channels: Channels before the 1 x 1 convolution.
        out_channels: Width d of the latents; for a KL autoencoder, twice that of a latent.

    Raises:
        ValueError: If `channels` is no multiple of 32, or there is no grid.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        latent_channels: int = 256,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        _check(channels, channel_mults)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_halvings = len(channel_mults) - 1
        width, side = channels, image_size
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1)]
        for i, mult in enumerate(channel_mults):
            for _ in range(num_res_blocks):
                layers.append(NormResidual(width, channels * mult))
                width = channels * mult
                if side in attention_resolutions:
                    layers.append(SingleHeadAttention(width))
            if i < self.num_halvings:
                layers.append(Halve(width))
                side //= 2
        layers += [NormResidual(width, width), SingleHeadAttention(width), NormResidual(width, width)]
        layers += [_norm(width), nn.SiLU(), nn.Conv2d(width, latent_channels, 3, padding=1)]
        layers.append(nn.Conv2d(latent_channels, out_channels, 1))
        self.layers = nn.Sequential(*layers)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`)."""
        return [layer for layer in self.layers if isinstance(layer, (NormResidual, SingleHeadAttention))]

    def code_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width (h, w) of the latents of images of that size.

        Raises:
            UserError: If a side cannot be halved so often.
        """
        factor = 2**self.num_halvings
        if height % factor or width % factor:
            raise UserError(
                f"images of {height}x{width} cannot be halved {self.num_halvings} times: set data.size to a multiple of {factor}"
            )
        return height // factor, width // factor

    def forward(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as latents [B, d, h, w]."""
        latents: Tensor = self.layers(images.contiguous(memory_format=torch.channels_last))
        return latents


class AttentionDecoder(nn.Module):
    """The way back: one more residual block on each grid, and nearest-neighbour upsampling before a convolution.

    Source: see `AttentionEncoder`; the first 1 x 1 convolution is the released code's `post_quant_conv`.

    Args:
        in_channels: Width d of the latents.
        image_size: See `AttentionEncoder`.
        channels: Likewise.
        channel_mults: Likewise, the finest first.
        num_res_blocks: Residual blocks of the encoder on each grid; here it is one more.
        attention_resolutions: See `AttentionEncoder`.
        latent_channels: Channels after the 1 x 1 convolution.
        out_channels: Channels C of the images.

    Raises:
        ValueError: If `channels` is no multiple of 32, or there is no grid.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        latent_channels: int = 256,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        _check(channels, channel_mults)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_doublings = len(channel_mults) - 1
        width, side = channels * channel_mults[-1], image_size >> self.num_doublings
        layers: list[nn.Module] = [nn.Conv2d(in_channels, latent_channels, 1)]
        layers.append(nn.Conv2d(latent_channels, width, 3, padding=1))
        layers += [NormResidual(width, width), SingleHeadAttention(width), NormResidual(width, width)]
        for i, mult in reversed(list(enumerate(channel_mults))):
            for _ in range(num_res_blocks + 1):
                layers.append(NormResidual(width, channels * mult))
                width = channels * mult
                if side in attention_resolutions:
                    layers.append(SingleHeadAttention(width))
            if i > 0:
                layers.append(Upsample(width))
                side *= 2
        layers += [_norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)

    @property
    def last_layer(self) -> Tensor:
        """See `HasLastLayer`: [C, c, 3, 3]."""
        weight = self.layers[-1].weight
        assert isinstance(weight, Tensor)
        return weight

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`)."""
        return [layer for layer in self.layers if isinstance(layer, (NormResidual, SingleHeadAttention))]

    def image_size(self, height: int, width: int) -> tuple[int, int]:
        """Compute the height and width (H, W) of the images of latents of that size."""
        return height << self.num_doublings, width << self.num_doublings

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents [B, d, h, w] to images [B, C, H, W]; not clipped."""
        images: Tensor = self.layers(latents.contiguous(memory_format=torch.channels_last))
        return images
