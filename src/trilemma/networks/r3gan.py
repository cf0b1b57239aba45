"""The generator and the discriminator of R3GAN: residual blocks without normalisation.

Differences from the paper: biases stand after each convolution inside a block and after the resampling of neither network, and
grids are resampled by bilinear interpolation (up) and averages of 2 x 2 (down).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.dcgan import grid_sides
from trilemma.networks.given import check_given

_SLOPE = 0.2
_NUM_CONVS = 3  # of a block's branch


class ResidualBlock(nn.Module):
    """Adds an inverted bottleneck: 1 x 1, grouped 3 x 3, 1 x 1 convolutions with LeakyReLU between them.

    Source: Huang et al. 2024 (R3GAN), section 3; Zhang et al. 2019 (Fixup), section 3.1, for the initial weights: the last
    convolution is zero, and the others are multiplied by L^(-1 / (2m - 2)) where a network has L blocks of m convolutions.

    Args:
        channels: Width c.
        expansion: Width of the bottleneck, in multiples of c.
        group_size: Channels of a group of the grouped convolution, at most; it divides the bottleneck's width.
        num_blocks: Number L of blocks of the network.
    """

    def __init__(self, channels: int, *, expansion: int, group_size: int, num_blocks: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = nn.Conv2d(channels, inner, 1)
        self.mix = nn.Conv2d(inner, inner, 3, padding=1, groups=inner // math.gcd(group_size, inner))
        self.project = nn.Conv2d(inner, channels, 1, bias=False)
        scale = num_blocks ** (-1 / (2 * _NUM_CONVS - 2))
        for conv in (self.expand, self.mix):
            nn.init.kaiming_normal_(conv.weight, a=_SLOPE)
            conv.weight.data.mul_(scale)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, c, h, w]."""
        branch = F.leaky_relu(self.expand(x), _SLOPE)
        branch = F.leaky_relu(self.mix(branch), _SLOPE)
        out: Tensor = x + self.project(branch)
        return out


class ResidualGenerator(nn.Module):
    """Turns a latent into an image: a learned grid that the latent scales channel by channel, then stages of residual blocks.

    A condition is concatenated to the latent.

    Source: Huang et al. 2024, section 3 (configuration E).

    Args:
        latent_dim: Width d of the latent.
        out_channels: Channels C of the images.
        image_size: Height and width.
        channels: Width of each stage, the smallest grid first; each doubles the one before (4, 7, 14, 28).
        num_blocks: Residual blocks a stage.
        expansion: See `ResidualBlock`.
        group_size: See `ResidualBlock`.
        condition_dim: Width of the pooled condition; None for an unconditional generator.

    Raises:
        ValueError: If the image cannot be halved so often, or a number is not positive.
    """

    def __init__(
        self,
        *,
        latent_dim: int,
        out_channels: int,
        image_size: int,
        channels: Sequence[int],
        num_blocks: int = 2,
        expansion: int = 2,
        group_size: int = 16,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.sides = grid_sides(image_size, channels, len(channels) - 1)[::-1]
        _check_positive(latent_dim=latent_dim, num_blocks=num_blocks, expansion=expansion, group_size=group_size)
        self.latent_dim = latent_dim
        self.condition_dim = condition_dim
        self.basis = nn.Parameter(torch.randn(channels[0], self.sides[0], self.sides[0]))
        self.scale = nn.Linear(latent_dim + (condition_dim or 0), channels[0], bias=False)
        nn.init.kaiming_normal_(self.scale.weight, nonlinearity="linear")
        self.changes = nn.ModuleList(_change(a, b) for a, b in pairwise(channels))
        self.stages = _stages(channels, num_blocks, expansion, group_size)
        self.out = nn.Conv2d(channels[-1], out_channels, 1)
        nn.init.kaiming_normal_(self.out.weight, nonlinearity="linear")

    def layer_blocks(self) -> list[nn.Module]:
        """See `HasBlocks`; the residual blocks."""
        return [block for stage in self.stages for block in stage.children()]

    def forward(self, z: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Generate images [B, C, H, W], unbounded, of latents z [B, d]; arguments as of `DCGenerator.forward`."""
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        x = self.scale(z if pooled is None else torch.cat([z, pooled], dim=1))[:, :, None, None] * self.basis
        x = self.stages[0](x.contiguous(memory_format=torch.channels_last))
        for change, stage, side in zip(self.changes, list(self.stages)[1:], self.sides[1:], strict=True):
            x = stage(F.interpolate(change(x), size=(side, side), mode="bilinear"))
        images: Tensor = self.out(x)
        return images


class ResidualDiscriminator(nn.Module):
    """Scores images: the stages of the generator in reverse, then one learned filter a channel and a linear read-out.

    A condition is read by projection (Miyato and Koyama 2018, equation 3).

    Source: Huang et al. 2024, section 3 (configuration E).

    Args:
        in_channels: Channels C of the images.
        image_size: Height and width.
        channels: Width of each stage, the largest grid first; each halves the one before, rounded up.
        num_blocks: Residual blocks a stage.
        expansion: See `ResidualBlock`.
        group_size: See `ResidualBlock`.
        condition_dim: Width of the pooled condition; None for an unconditional discriminator.

    Raises:
        ValueError: If the image cannot be halved so often, or a number is not positive.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        channels: Sequence[int],
        num_blocks: int = 2,
        expansion: int = 2,
        group_size: int = 16,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        side = grid_sides(image_size, channels, len(channels) - 1)[-1]
        _check_positive(num_blocks=num_blocks, expansion=expansion, group_size=group_size)
        width = channels[-1]
        self.condition_dim = condition_dim
        self.stem = nn.Conv2d(in_channels, channels[0], 1)
        nn.init.kaiming_normal_(self.stem.weight, nonlinearity="linear")
        self.changes = nn.ModuleList(_change(a, b) for a, b in pairwise(channels))
        self.stages = _stages(channels, num_blocks, expansion, group_size)
        self.basis = nn.Conv2d(width, width, side, groups=width, bias=False)
        self.head = nn.Linear(width, 1)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, width, bias=False)
        for layer in (self.basis, self.head):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
        nn.init.zeros_(self.head.bias)

    def layer_blocks(self) -> list[nn.Module]:
        """See `HasBlocks`; the residual blocks."""
        return [block for stage in self.stages for block in stage.children()]

    def forward(self, x: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Score images x [B, C, H, W]: logits [B]; arguments as of `DCDiscriminator.forward`."""
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        x = self.stages[0](self.stem(x.contiguous(memory_format=torch.channels_last)))
        for change, stage in zip(self.changes, list(self.stages)[1:], strict=True):
            x = stage(change(F.avg_pool2d(x, 2, ceil_mode=True)))
        features = self.basis(x).flatten(1)
        score: Tensor = self.head(features)[:, 0]
        if self.condition is not None and pooled is not None:
            score = score + (self.condition(pooled) * features).sum(1) / math.sqrt(features.shape[1])
        return score


def _stages(channels: Sequence[int], num_blocks: int, expansion: int, group_size: int) -> nn.ModuleList:
    whole = num_blocks * len(channels)

    def block(width: int) -> ResidualBlock:
        return ResidualBlock(width, expansion=expansion, group_size=group_size, num_blocks=whole)

    return nn.ModuleList(nn.Sequential(*(block(width) for _ in range(num_blocks))) for width in channels)


def _change(in_channels: int, out_channels: int) -> nn.Module:
    """Build what changes the width from one stage to the next."""
    if in_channels == out_channels:
        return nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
    return conv


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}={number} must be at least 1")
