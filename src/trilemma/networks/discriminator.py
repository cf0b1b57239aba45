"""The discriminator of a denoising GAN: is xs a denoised version of xt from the data?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.embeddings import TimeEmbedding
from trilemma.networks.given import check_given

_SLOPE = 0.2


class MinibatchDeviation(nn.Module):
    """Appends the standard deviation over a group of images as one channel, which shows a generator that repeats itself.

    Groups are neighbours in the batch, so they are the same where processes have a part of it each.

    Source: Karras et al. 2018 (progressive growing), section 3.

    Args:
        group_size: Images in a group, at most; the largest number that divides both it and the batch is taken.
    """

    def __init__(self, group_size: int = 4) -> None:
        super().__init__()
        self.group_size = group_size

    def forward(self, x: Tensor) -> Tensor:
        """Append the deviation to x [B, c, h, w], giving [B, c + 1, h, w]."""
        B, _, h, w = x.shape
        size = math.gcd(self.group_size, B)
        groups = x.reshape(B // size, size, *x.shape[1:])
        deviation = (groups.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([x, deviation.repeat_interleave(size)[:, None, None, None].expand(B, 1, h, w)], dim=1)


class _Down(nn.Module):
    """A residual block that halves the grid after its first convolution; an embedding is added between the two convolutions."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int) -> None:
        super().__init__()
        self.first = _conv(in_channels, out_channels)
        self.steer = nn.Linear(embedding_dim, out_channels)
        self.second = _conv(out_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Transform x [B, in, h, w] with embeddings [B, d] to [B, out, h // 2, w // 2]."""
        branch = self.first(_activated(x)) + self.steer(embedding)[:, :, None, None]
        branch = self.second(_activated(F.avg_pool2d(branch, 2)))
        shortcut: Tensor = self.shortcut(F.avg_pool2d(x, 2))
        out: Tensor = (shortcut + branch) * math.sqrt(0.5)
        return out


class TimeDiscriminator(nn.Module):
    """Tells whether xs, the less noisy of two states of a trajectory, comes from data.

    A residual network without normalisation over both states, modulated by the time of the noisier one.

    Source: Xiao et al. 2022 (denoising diffusion GANs), section 3.2 and appendix C.

    Args:
        in_channels: Channels of one state.
        image_size: Height and width.
        channels: Width of the stem and then of every block; each block halves the grid.
        patch_size: Side of the squares of pixels that are folded into channels first.
        embedding_dim: Width of the embedding of time and condition.
        condition_dim: Width of the pooled condition; None for an unconditional discriminator.
        group_size: See `MinibatchDeviation`.

    Raises:
        ValueError: If the image cannot be cut into patches or halved so often.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        channels: Sequence[int] = (64, 128, 256, 256),
        patch_size: int = 1,
        embedding_dim: int = 128,
        condition_dim: int | None = None,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} cannot be cut into patches of {patch_size}")
        if len(channels) < 2 or image_size // patch_size >> (len(channels) - 1) < 1:
            raise ValueError(
                f"channels={list(channels)}: a stem and at least one halving are needed, and "
                f"{image_size // patch_size} x {image_size // patch_size} patches must allow all of them"
            )
        self.patch_size = patch_size
        self.condition_dim = condition_dim
        self.time = TimeEmbedding(embedding_dim)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, embedding_dim)
        self.stem = nn.Conv2d(2 * in_channels * patch_size**2, channels[0], 1)
        self.blocks = nn.ModuleList(_Down(narrow, wide, embedding_dim) for narrow, wide in pairwise(channels))
        self.deviation = MinibatchDeviation(group_size)
        self.last = _conv(channels[-1] + 1, channels[-1])
        self.head = nn.Linear(channels[-1], 1)

    def forward(self, xs: Tensor, xt: Tensor, t: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Score pairs of states.

        Args:
            xs: The less noisy state, [B, in_channels, h, w].
            xt: The noisier one, likewise.
            t: Its time in [0, 1], [B].
            pooled: Condition [B, condition_dim]; given exactly where the network was built with one.

        Returns:
            Logits [B], high for data.

        Raises:
            ValueError: If the condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        embedding: Tensor = self.time(t)
        if self.condition is not None and pooled is not None:
            embedding = embedding + self.condition(pooled)
        embedding = _activated(embedding)
        x = F.pixel_unshuffle(torch.cat([xs, xt], dim=1), self.patch_size)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x, embedding)
        x = _activated(self.last(self.deviation(_activated(x))))
        score: Tensor = self.head(x.mean((2, 3)))
        return score[:, 0]


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Build a 3 x 3 convolution with Kaiming initialisation, which keeps the size of activations without normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=_SLOPE)
    return conv


def _activated(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)
