"""Transformer blocks with adaptive layer normalisation (AdaLN-zero)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer-normalise x [B, L, d] without an affine part, then apply (1 + scale) and shift, each [B, 1, d]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class SelfAttention(nn.Module):
    """Multi-head attention of every position to every position.

    Args:
        dim: Width d.
        num_heads: Number of heads; divides d.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within x [B, L, d]."""
        B, L, d = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, d))
        return mixed


class CrossAttention(nn.Module):
    """Multi-head attention of every position to a context.

    Args:
        dim: Width d.
        context_dim: Width of the context.
        num_heads: Number of heads; divides d.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(context_dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from x [B, L, d] to context [B, M, context_dim] where mask [B, M] is True.

        An image whose mask is False throughout has nothing to attend to and gets zeros.
        """
        B, L, d = x.shape
        head_dim = d // self.num_heads
        q = self.query(x).view(B, L, self.num_heads, head_dim).transpose(1, 2)
        k, v = self.key_value(context).view(B, -1, 2, self.num_heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if mask is None:
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            # A softmax over nothing is NaN: an image without context attends to padding, and its result is discarded.
            present = mask.any(dim=1)
            visible = mask | ~present[:, None]
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None, None, :])
        mixed: Tensor = self.out(attended.transpose(1, 2).reshape(B, L, d))
        return mixed if mask is None else mixed.masked_fill(~present[:, None, None], 0.0)


class MLP(nn.Module):
    """An MLP with one hidden layer at every position; with a kernel, the hidden layer mixes neighbours on the grid.

    The mixing is a depthwise convolution beside the identity, so it starts as a small change. Token maps of images are
    locally correlated and attention learns that slowly: VQ-Diffusion's class-conditional networks have full 3 x 3
    convolutions in this place (Gu et al. 2022, released code); the depthwise form is that of Xie et al. 2021
    (SegFormer), equation 3.

    Args:
        dim: Width d.
        hidden: Width of the hidden layer.
        grid: The grid's axes, (h, w) or (h, w, c).
        kernel: Odd side of the convolution over (h, w); 0 has none.

    Raises:
        ValueError: If the kernel is even or negative.
    """

    def __init__(self, dim: int, hidden: int, *, grid: Sequence[int] = (), kernel: int = 0) -> None:
        super().__init__()
        if kernel < 0 or (kernel and kernel % 2 == 0):
            raise ValueError(f"kernel={kernel} must be 0 (no convolution) or odd")
        self.grid = tuple(grid)
        self.fc1 = nn.Linear(dim, hidden)
        self.mix = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden) if kernel else None
        # The exact GELU: on CPUs several times faster than its tanh approximation.
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, L, d], L in raster order over the grid."""
        x = self.fc1(x)
        if self.mix is not None:
            x = x + self._neighbours(x)
        out: Tensor = self.fc2(self.activation(x))
        return out

    def _neighbours(self, x: Tensor) -> Tensor:
        assert self.mix is not None
        B, L, d = x.shape
        h, w, *channels = self.grid
        c = math.prod(channels)
        planes = x.view(B, h, w, c, d).permute(0, 3, 4, 1, 2).reshape(B * c, d, h, w)
        mixed: Tensor = self.mix(planes)
        return mixed.view(B, c, d, h, w).permute(0, 3, 4, 1, 2).reshape(B, L, d)


class AdaLNBlock(nn.Module):
    """Self-attention, optional cross-attention and an MLP; each shifted, scaled and gated by a conditioning vector.

    The gates start at zero, so the block starts as the identity.

    Source: Peebles and Xie 2023 (DiT), section 3.2, adaLN-Zero.

    Args:
        dim: Width d.
        num_heads: Number of attention heads.
        context_dim: Width of the context; None leaves cross-attention out.
        mlp_ratio: Hidden width of the MLP over d.
        dropout: Probability of dropping an entry of a branch's result.
        grid: See `MLP`.
        kernel: See `MLP`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        grid: Sequence[int] = (),
        kernel: int = 0,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads)
        self.cross = None if context_dim is None else CrossAttention(dim, context_dim, num_heads)
        self.mlp = MLP(dim, int(dim * mlp_ratio), grid=grid, kernel=kernel)
        self.dropout = nn.Dropout(dropout)
        self.num_branches = 2 if self.cross is None else 3
        self.modulation = nn.Linear(dim, 3 * self.num_branches * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, conditioning: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Transform x.

        Args:
            x: [B, L, d].
            conditioning: Vector that the modulation is computed from, once a block, [B, d].
            context: [B, M, context_dim], where the block has cross-attention.
            mask: True where the context is valid, [B, M].

        Returns:
            [B, L, d].
        """
        parts = self.modulation(conditioning)[:, None].to(x.dtype).chunk(3 * self.num_branches, dim=-1)
        x = self._add(x, parts[2], self.attention(modulate(x, parts[0], parts[1])))
        if self.cross is not None:
            assert context is not None
            x = self._add(x, parts[8], self.cross(modulate(x, parts[6], parts[7]), context, mask))
        return self._add(x, parts[5], self.mlp(modulate(x, parts[3], parts[4])))

    def _add(self, x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(x, gate, self.dropout(branch).to(x.dtype))
