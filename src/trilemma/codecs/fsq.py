"""Finite scalar quantisation: a codebook that is a fixed grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trilemma.codecs.quantizer import Quantized, Quantizer, full_precision

_MARGIN = 1e-3  # how far the bound reaches past the outermost levels, in shares


class FSQ(Quantizer):
    """Rounds each of a few channels to one of its levels; nothing is learned, and no code can die.

    Channel i of a latent is bounded by a tanh and rounded to L_i integers, which are divided by floor(L_i / 2): a code is a point
    of the grid [-1, 1]^d, and K = L_1 ... L_d. Its index counts the grid with the first channel fastest. Gradients pass straight
    through the rounding.

    Source: Mentzer et al. 2024 (FSQ), section 3.1 and appendix A.1.

    Args:
        levels: Number of levels L_i of each channel, 3 at least; the paper takes 5 or more.

    Raises:
        ValueError: If there is no channel, or one has fewer than 3 levels.
    """

    grid: Tensor
    num_levels: Tensor
    strides: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"levels={list(levels)} must name at least one channel, each of 3 levels or more")
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.codebook_size = math.prod(levels)
        sizes = torch.tensor(levels)
        self.register_buffer("num_levels", sizes.view(-1, 1, 1), persistent=False)
        strides = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
        self.register_buffer("strides", strides.view(-1, 1, 1), persistent=False)
        half = sizes // 2
        places = torch.arange(self.codebook_size)[:, None] // strides % sizes
        self.register_buffer("grid", (places - half) / half, persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The points of the grid, [K, d]."""
        return self.grid

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B, d, h, w]; there is nothing to commit to, so that loss is 0."""
        with full_precision(latents.device):
            bounded = self._bounded(latents)
            rounded = bounded + (bounded.round() - bounded).detach()
        return Quantized(rounded / (self.num_levels // 2), self._index(rounded.detach().round()), bounded.new_zeros(()))

    def nearest(self, latents: Tensor) -> Tensor:
        """See `Quantizer`: nearest to the bounded latents."""
        with full_precision(latents.device):
            return self._index(self._bounded(latents).round())

    def _bounded(self, latents: Tensor) -> Tensor:
        """Bound channel i so that it rounds to L_i integers from -floor(L_i / 2) on; a latent of 0 becomes 0."""
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        half = (self.num_levels - 1) * (1 + _MARGIN) / 2
        offset = torch.where(self.num_levels % 2 == 0, 0.5, 0.0)  # an even number of levels has none in the middle
        return torch.tanh(wide + torch.atanh(offset / half)) * half - offset

    def _index(self, rounded: Tensor) -> Tensor:
        return ((rounded.long() + self.num_levels // 2) * self.strides).sum(1)
