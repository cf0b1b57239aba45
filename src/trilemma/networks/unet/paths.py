"""The downsampling and upsampling paths of a U-Net, and the conditioning of their blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.unet.layers import ConditionedResidual, GridAttention, Upsample


def grid_sides(image_size: int, num_levels: int, patch_size: int) -> list[int]:
    """Compute the side of every level's grid, finest first; each is half of the one before.

    Raises:
        UserError: If the image cannot be cut into patches and halved that often.
    """
    multiple = patch_size << (num_levels - 1)
    if image_size % multiple:
        raise UserError(
            f"an image of side {image_size} cannot be halved for {num_levels} levels of patches of {patch_size}: "
            f"set data.size to a multiple of {multiple}, or give the network fewer channel_mults"
        )
    return [image_size // patch_size >> level for level in range(num_levels)]


class Stage(nn.Module):
    """A residual block and, where the resolution asks for it, attention.

    Args:
        block: The residual block.
        attention: The attention after it; None has none.
    """

    def __init__(self, block: ConditionedResidual, attention: GridAttention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, conditioning: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """Transform x [B, in_channels, h, w] to [B, out_channels, h, w]."""
        x = self.block(x, conditioning)
        return x if self.attention is None else self.attention(x, context, mask)


class StageFactory:
    """Builds the stages of one network from the options that all of them share.

    Args:
        scale_shift: See `ConditionedResidual`.
        dropout: See `ConditionedResidual`.
        attention_sides: Sides of the grids that get attention.
        num_heads: See `GridAttention`.
        context_dim: See `GridAttention`.
    """

    def __init__(
        self,
        *,
        scale_shift: bool,
        dropout: float,
        attention_sides: Sequence[int],
        num_heads: int,
        context_dim: int | None = None,
    ) -> None:
        self.scale_shift, self.dropout, self.attention_sides = scale_shift, dropout, tuple(attention_sides)
        self.num_heads, self.context_dim = num_heads, context_dim

    def stage(self, in_channels: int, out_channels: int, side: int) -> Stage:
        """Build a stage on a grid of this side."""
        block = self.block(in_channels, out_channels)
        return Stage(block, self.attention(out_channels) if side in self.attention_sides else None)

    def middle(self, channels: int) -> nn.ModuleList:
        """Build the two stages at the bottom, of which the first always has attention."""
        blocks = [self.block(channels, channels) for _ in range(2)]
        return nn.ModuleList([Stage(blocks[0], self.attention(channels)), Stage(blocks[1], None)])

    def block(self, in_channels: int, out_channels: int) -> ConditionedResidual:
        """Build a residual block."""
        return ConditionedResidual(in_channels, out_channels, scale_shift=self.scale_shift, dropout=self.dropout)

    def attention(self, channels: int) -> GridAttention:
        """Build the attention of a stage."""
        return GridAttention(channels, num_heads=self.num_heads, context_dim=self.context_dim)


class Descent(nn.Module):
    """The downsampling path: stages on ever coarser grids, with a strided convolution between two grids.

    Args:
        factory: Builds the stages.
        in_channels: Channels of the (patched) input.
        stem_width: Width of the first convolution's result.
        widths: Width of every level, finest first.
        sides: Side of every level's grid.
        num_res_blocks: Stages a level.

    Attributes:
        out_widths: Width of every tensor that `forward` returns.
    """

    def __init__(
        self,
        factory: StageFactory,
        *,
        in_channels: int,
        stem_width: int,
        widths: Sequence[int],
        sides: Sequence[int],
        num_res_blocks: int,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, stem_width, 3, padding=1)
        self.levels = nn.ModuleList()
        self.out_widths = [stem_width]
        width = stem_width
        for level, (wider, side) in enumerate(zip(widths, sides, strict=True)):
            layers = nn.ModuleList()
            for _ in range(num_res_blocks):
                layers.append(factory.stage(width, wider, side))
                self.out_widths.append(wider)
                width = wider
            if level < len(widths) - 1:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                self.out_widths.append(width)
            self.levels.append(layers)

    def forward(
        self, x: Tensor, conditioning: Iterator[Tensor], context: Tensor | None, mask: Tensor | None
    ) -> list[Tensor]:
        """Compute all intermediate results of x [B, in_channels, h, w], finest first; the last is the bottom."""
        results = [self.stem(x)]
        for level in self.levels:
            assert isinstance(level, nn.ModuleList)
            for layer in level:
                x = results[-1]
                results.append(layer(x, next(conditioning), context, mask) if isinstance(layer, Stage) else layer(x))
        return results


class Ascent(nn.Module):
    """The upsampling path: stages on ever finer grids, each with a skip connection from the downsampling path.

    Args:
        factory: Builds the stages.
        in_width: Width at the bottom.
        skip_widths: Width of every result of the downsampling path, finest first.
        widths: Width of every level, finest first.
        sides: Side of every level's grid.
        num_res_blocks: Stages a level.
    """

    def __init__(
        self,
        factory: StageFactory,
        *,
        in_width: int,
        skip_widths: Sequence[int],
        widths: Sequence[int],
        sides: Sequence[int],
        num_res_blocks: int,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        remaining, width = list(skip_widths), in_width
        for level in reversed(range(len(widths))):
            layers = nn.ModuleList()
            for _ in range(num_res_blocks):
                layers.append(factory.stage(width + remaining.pop(), widths[level], sides[level]))
                width = widths[level]
            if level > 0:
                layers.append(Upsample(width))
            self.levels.append(layers)

    def forward(
        self,
        x: Tensor,
        skips: list[Tensor],
        conditioning: Iterator[Tensor],
        context: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Transform the bottom x and the skips, which are consumed, to [B, widths[0], h, w]."""
        for level in self.levels:
            assert isinstance(level, nn.ModuleList)
            for layer in level:
                if isinstance(layer, Stage):
                    x = torch.cat([x, skips.pop()], dim=1)
                    x = layer(x, next(conditioning), context, mask)
                else:
                    x = layer(x)
        return x


class BlockConditioning(nn.Module):
    """Computes the conditioning vectors of all residual blocks of a network, in one matrix product.

    Args:
        in_dim: Width of the embedding of time and condition.
        blocks: The residual blocks, in the order in which they run.
    """

    def __init__(self, in_dim: int, blocks: Sequence[ConditionedResidual]) -> None:
        super().__init__()
        self.dims = [block.conditioning_dim for block in blocks]
        self.project = nn.Linear(in_dim, sum(self.dims))

    def forward(self, embedding: Tensor) -> Iterator[Tensor]:
        """Project embeddings [B, in_dim] to a vector [B, conditioning_dim] for every block in turn."""
        return iter(self.project(F.silu(embedding)).split(self.dims, dim=1))


def residual_blocks(*modules: nn.Module) -> list[ConditionedResidual]:
    """List the residual blocks in these modules, in order."""
    return [part for module in modules for part in module.modules() if isinstance(part, ConditionedResidual)]


def stages(*modules: nn.Module) -> list[nn.Module]:
    """List the stages in these modules, in order."""
    return [part for module in modules for part in module.modules() if isinstance(part, Stage)]
