"""The network of released VQ-Diffusion: a timestep table per layer, the class before the MLP, convolutions in the MLP.

Shapes: B images, L tokens, d width, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.embeddings import GridPosition
from trilemma.networks.given import check_given
from trilemma.networks.transformer.layers import CrossAttention, SelfAttention, modulate

_ON_GRID = 1e-3  # of a step: i / T, times T in single precision, is nearer to i than this


class TimestepRow(NamedTuple):
    """Times between rows of a table: the rows `low` and `high`, int64 [B], and the `fraction` of the way between them, [B]."""

    low: Tensor
    high: Tensor
    fraction: Tensor


def place(t: Tensor, num_timesteps: int) -> TimestepRow:
    """Find times t [B] in [0, 1] among the T rows of a table: row i - 1 belongs to time i / T.

    A time of the grid is its row exactly. Between two rows embeddings are interpolated linearly, so a sampler may take any
    steps; below 1 / T, where nothing was trained, the first row is used.
    """
    position = (t.to(torch.promote_types(t.dtype, torch.float32)) * num_timesteps - 1.0).clamp(0.0, num_timesteps - 1.0)
    nearest = position.round()
    position = torch.where((position - nearest).abs() < _ON_GRID, nearest, position)
    low = position.floor()
    return TimestepRow(low.long(), position.ceil().long(), position - low)


class AdaLayerNorm(nn.Module):
    """LN(x) (1 + scale) + shift, with scale and shift from a conditioning vector (AdaLN).

    Args:
        dim: Width d.
        num_timesteps: Where given, the vectors are the rows of a table of this layer's own, looked up by time.
    """

    def __init__(self, dim: int, *, num_timesteps: int | None = None) -> None:
        super().__init__()
        self.steps = None if num_timesteps is None else nn.Embedding(num_timesteps, dim)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, by: TimestepRow | Tensor) -> Tensor:
        """Normalise x [B, L, d], modulated by timesteps or by vectors [B, d]."""
        if isinstance(by, Tensor):
            vector = by
        else:
            assert self.steps is not None
            low = self.steps(by.low)
            vector = torch.lerp(low, self.steps(by.high), by.fraction[:, None].to(low.dtype))
        shift, scale = self.modulation(F.silu(vector))[:, None].to(x.dtype).chunk(2, dim=-1)
        return modulate(x, shift, scale)


def gelu2(x: Tensor) -> Tensor:
    """Compute x sigmoid(1.702 x) (Hendrycks and Gimpel 2016, section 2) such that autograd stores x alone."""
    return F.silu(1.702 * x) / 1.702


class GridPerceptron(nn.Module):
    """An MLP with one hidden layer at every position; with `kernel` above 1 both layers are convolutions over the grid.

    Args:
        dim: Width d.
        hidden: Width of the hidden layer.
        grid: The grid's axes, (h, w) or (h, w, c).
        kernel: Odd side of the convolutions over (h, w).
    """

    def __init__(self, dim: int, hidden: int, *, grid: Sequence[int], kernel: int) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.fc1 = nn.Conv2d(dim, hidden, kernel, padding=kernel // 2)
        self.fc2 = nn.Conv2d(hidden, dim, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, L, d], L in raster order over the grid."""
        B, L, d = x.shape
        h, w, *channels = self.grid
        c = math.prod(channels)
        planes = x.view(B, h, w, c, d).permute(0, 3, 4, 1, 2).flatten(0, 1)
        planes = self.fc2(gelu2(self.fc1(planes)))
        out: Tensor = planes.view(B, c, d, h, w).permute(0, 3, 4, 1, 2).reshape(B, L, d)
        return out


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a context, and an MLP; each after a normalisation.

    Args:
        dim: Width d.
        num_heads: Number of attention heads.
        num_timesteps: T.
        conditioned: Whether a vector modulates the MLP's normalisation; otherwise it is a plain LayerNorm.
        context_dim: Width of the context; None leaves cross-attention out.
        hidden: Hidden width of the MLP.
        grid: See `GridPerceptron`.
        kernel: See `GridPerceptron`.
        dropout: Probability of dropping an entry of a branch's result.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_timesteps: int,
        conditioned: bool,
        context_dim: int | None,
        hidden: int,
        grid: Sequence[int],
        kernel: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention_norm = AdaLayerNorm(dim, num_timesteps=num_timesteps)
        self.attention = SelfAttention(dim, num_heads)
        self.cross_norm: AdaLayerNorm | None = None
        self.cross: CrossAttention | None = None
        if context_dim is not None:
            self.cross_norm = AdaLayerNorm(dim, num_timesteps=num_timesteps)
            self.cross = CrossAttention(dim, context_dim, num_heads)
        self.mlp_norm: AdaLayerNorm | nn.LayerNorm = AdaLayerNorm(dim) if conditioned else nn.LayerNorm(dim)
        self.mlp = GridPerceptron(dim, hidden, grid=grid, kernel=kernel)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        when: TimestepRow,
        vector: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Transform x.

        Args:
            x: [B, L, d].
            when: The timesteps' rows in the layer's table.
            vector: Modulates the normalisation before the MLP, [B, d].
            context: [B, M, context_dim], where the layer has cross-attention.
            mask: True where the context is valid, [B, M].

        Returns:
            [B, L, d].
        """
        x = x + self.dropout(self.attention(self.attention_norm(x, when)))
        if self.cross is not None:
            assert self.cross_norm is not None
            assert context is not None
            x = x + self.dropout(self.cross(self.cross_norm(x, when), context, mask))
        normed = self.mlp_norm(x) if vector is None else self.mlp_norm(x, vector)
        out: Tensor = x + self.dropout(self.mlp(normed))
        return out


class VQDiffusionTransformer(nn.Module):
    """Predicts logits of the clean token at every position from all noisy tokens, the time and a condition.

    It differs from `BidirectionalTransformer` where the released configurations do: each layer looks its timestep up in a
    table of its own, the class modulates only the normalisation before the MLP, the MLP is a pair of full
    convolutions over the token grid (`mlp_kernel` 3: eight of ten parameters lie there), branches have no gates, and every
    weight matrix starts small and random.

    Source: Gu et al. 2022 (VQ-Diffusion), section 4.2, and the configurations released with it.

    Args:
        num_states: Number of token values S that can come in.
        num_classes: Number of classes K that are predicted.
        code_shape: The grid, (h, w) or (h, w, c); its product is L.
        dim: Width d.
        depth: Number of layers.
        num_heads: Number of attention heads; divides d.
        num_timesteps: Length T of the chain that is trained; see `place` for times off its grid.
        condition_dim: Width of the pooled condition: d, which all layers share, or depth x d, of which each layer gets a part
            of its own (a table of classes a layer, as released); None where there is none.
        context_dim: Width of the context sequence; None where there is none.
        mlp_ratio: Hidden width of the MLPs over d.
        mlp_kernel: Odd side of their convolutions over (h, w); 1 has plain linear layers.
        dropout: Probability of dropping an entry of a residual branch.

    Raises:
        ValueError: If a width or the kernel does not fit.
    """

    def __init__(
        self,
        *,
        num_states: int,
        num_classes: int,
        code_shape: Sequence[int],
        dim: int,
        depth: int,
        num_heads: int,
        num_timesteps: int = 100,
        condition_dim: int | None = None,
        context_dim: int | None = None,
        mlp_ratio: float = 4.0,
        mlp_kernel: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        if condition_dim not in (None, dim, depth * dim):
            raise ValueError(
                f"condition_dim={condition_dim} must be dim={dim}, or depth x dim={depth * dim} with a part for each layer"
            )
        if mlp_kernel < 1 or mlp_kernel % 2 == 0:
            raise ValueError(f"mlp_kernel={mlp_kernel} must be odd; 1 has no convolution")
        if num_timesteps < 1:
            raise ValueError(f"num_timesteps={num_timesteps} must be at least 1")
        self.dim, self.depth, self.num_timesteps = dim, depth, num_timesteps
        self.condition_dim, self.context_dim = condition_dim, context_dim
        self.token = nn.Embedding(num_states, dim)
        self.position = GridPosition(code_shape, dim)
        self.layers = nn.ModuleList(
            Layer(
                dim,
                num_heads,
                num_timesteps=num_timesteps,
                conditioned=condition_dim is not None,
                context_dim=context_dim,
                hidden=int(dim * mlp_ratio),
                grid=code_shape,
                kernel=mlp_kernel,
                dropout=dropout,
            )
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for axis in self.position.axes:
            nn.init.normal_(axis, std=0.02)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the layers."""
        return list(self.layers)

    def forward(
        self,
        tokens: Tensor,
        t: Tensor,
        pooled: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Predict the clean tokens; arguments and result are those of `BidirectionalTransformer`."""
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        check_given("context", context, self.context_dim, "context_dim")
        when = place(t, self.num_timesteps)
        parts: Sequence[Tensor | None] = [None] * self.depth
        if pooled is not None:
            parts = [pooled] * self.depth if self.condition_dim == self.dim else pooled.chunk(self.depth, dim=1)

        x = self.token(tokens) + self.position()
        for layer, part in zip(self.layers, parts, strict=True):
            x = layer(x, when, part, context, context_mask)
        logits: Tensor = self.head(self.final_norm(x))
        return logits if logits.dtype.itemsize >= 4 else logits.float()
