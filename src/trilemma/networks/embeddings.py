"""Embeddings of position and time for transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GridPosition(nn.Module):
    """Learned embedding of every position of a grid: the sum of one vector per axis (row + column, + channel).

    Source: Gu et al. 2022 (VQ-Diffusion), section 4.2, row and column embeddings.

    Args:
        shape: Sizes of the axes, slowest first; the cells are in raster order.
        dim: Width d.
    """

    def __init__(self, shape: Sequence[int], dim: int) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(size, dim)) for size in self.shape)
        for axis in self.axes:
            nn.init.normal_(axis, std=0.3)

    def forward(self) -> Tensor:
        """Compute the embeddings of all positions, [L, d]."""
        rank = len(self.shape)
        total: Tensor | None = None
        for i, axis in enumerate(self.axes):
            shaped = axis.reshape(*(size if i == j else 1 for j, size in enumerate(self.shape)), -1)
            total = shaped if total is None else total + shaped
        assert total is not None
        return total.flatten(0, rank - 1)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of t, followed by an MLP with one hidden layer.

    Source: Vaswani et al. 2017, section 3.5; used for diffusion times by Ho et al. 2020. Times in [0, 1] are stretched
    to [0, 1000], the range those frequencies were made for.

    Args:
        dim: Width d of the result.
        num_frequencies: Number of sines, and of cosines.
    """

    SCALE = 1000.0
    MAX_PERIOD = 10000.0

    def __init__(self, dim: int, *, num_frequencies: int = 64) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.hidden = nn.Linear(2 * num_frequencies, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t [B] in [0, 1] as [B, d]."""
        # bfloat16 angles near 1000 would be off by whole radians.
        dtype = torch.promote_types(self.hidden.weight.dtype, torch.float32)
        exponent = torch.arange(self.num_frequencies, device=t.device, dtype=dtype) / self.num_frequencies
        frequencies = torch.exp(-math.log(self.MAX_PERIOD) * exponent)
        angles = self.SCALE * t.to(dtype)[:, None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.hidden.weight.dtype)
        embedded: Tensor = self.out(F.silu(self.hidden(waves)))
        return embedded
