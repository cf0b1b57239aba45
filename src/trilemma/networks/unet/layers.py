"""The parts of a U-Net: residual blocks with conditioning, attention over a grid, and upsampling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.transformer.layers import CrossAttention, SelfAttention


def group_norm(channels: int) -> nn.GroupNorm:
    """Build a normalisation of at most 32 groups, of four channels or more each.

    A group of a single channel would remove the constant that time and condition add to that channel.
    """
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1), channels), channels, eps=1e-6)


def zeroed(layer: nn.Conv2d | nn.Linear) -> None:
    """Initialise a layer to zero, so that its branch adds nothing at first."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


class ConditionedResidual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a conditioning vector between the two convolutions.

    The vector is added (Ho et al. 2020), or scales and shifts the second normalisation (AdaGN, Dhariwal and Nichol
    2021, section 3.1). The second convolution starts at zero, so the block starts as its shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result; where they differ, the shortcut is a 1 x 1 convolution.
        scale_shift: Whether the vector scales and shifts.
        dropout: Probability of dropping an entry before the second convolution.

    Attributes:
        conditioning_dim: Width of the conditioning vector.
    """

    def __init__(self, in_channels: int, out_channels: int, *, scale_shift: bool, dropout: float) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.conditioning_dim = (2 if scale_shift else 1) * out_channels
        self.first_norm = group_norm(in_channels)
        self.first = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.second_norm = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        zeroed(self.second)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Transform x [B, in_channels, h, w] to [B, out_channels, h, w], given conditioning [B, conditioning_dim]."""
        hidden = self.first(F.silu(self.first_norm(x)))
        conditioning = conditioning[:, :, None, None].to(hidden.dtype)
        if self.scale_shift:
            scale, shift = conditioning.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.second_norm(hidden), 1 + scale)
        else:
            hidden = self.second_norm(hidden + conditioning)
        branch: Tensor = self.second(self.dropout(F.silu(hidden)))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + branch


class GridAttention(nn.Module):
    """Attention of every position of a grid to every other and, where there is a context, to the context.

    Each is a residual branch after a normalisation and starts at zero.

    Args:
        channels: Width.
        num_heads: Number of heads; divides the width.
        context_dim: Width of the context; None leaves cross-attention out.
    """

    def __init__(self, channels: int, *, num_heads: int, context_dim: int | None) -> None:
        super().__init__()
        if channels % num_heads:
            raise UserError(f"num_heads={num_heads} does not divide a width of {channels}: set network.num_heads")
        self.norm = group_norm(channels)
        self.attention = SelfAttention(channels, num_heads)
        zeroed(self.attention.out)
        self.cross_norm: nn.GroupNorm | None = None
        self.cross: CrossAttention | None = None
        if context_dim is not None:
            self.cross_norm = group_norm(channels)
            self.cross = CrossAttention(channels, context_dim, num_heads)
            zeroed(self.cross.out)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Transform x [B, c, h, w] with a context [B, M, context_dim], valid where the mask [B, M] is True."""
        h, w = x.shape[2:]
        x = x + _to_grid(self.attention(_to_sequence(self.norm(x))), h, w)
        if self.cross is not None:
            assert self.cross_norm is not None
            assert context is not None
            x = x + _to_grid(self.cross(_to_sequence(self.cross_norm(x)), context, mask), h, w)
        return x


def _to_sequence(grid: Tensor) -> Tensor:
    """Reshape [B, c, h, w] to [B, h * w, c]; no copy where the channels lie last in memory."""
    return grid.permute(0, 2, 3, 1).flatten(1, 2)


def _to_grid(sequence: Tensor, h: int, w: int) -> Tensor:
    """Reshape [B, h * w, c] to [B, c, h, w], the channels last in memory."""
    return sequence.view(sequence.shape[0], h, w, -1).permute(0, 3, 1, 2)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3 x 3 convolution.

    Both together are one transposed convolution of stride 2, whose 4 x 4 kernel sums the taps on the same input
    position: 16 products a position instead of 36, and no upsampled copy in memory.

    Args:
        channels: Width.
    """

    taps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        # Row i of the 4 x 4 kernel is the sum of those rows of the 3 x 3 kernel whose entry in row i is 1.
        rows = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("taps", torch.einsum("ia,jb->abij", rows, rows).reshape(9, 16), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample [B, c, h, w] to [B, c, 2h, 2w]."""
        weight = self.conv.weight
        kernel = (weight.flatten(2) @ self.taps.to(weight.dtype)).view(*weight.shape[:2], 4, 4).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)
