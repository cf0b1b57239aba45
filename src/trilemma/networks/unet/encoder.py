"""A classifier of noisy images: the downsampling path of a U-Net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.embeddings import GridPosition, TimeEmbedding
from trilemma.networks.transformer.layers import CrossAttention
from trilemma.networks.unet.layers import group_norm
from trilemma.networks.unet.paths import BlockConditioning, Descent, StageFactory, grid_sides, residual_blocks, stages


class UNetEncoder(nn.Module):
    """Predicts logits of an image's label from its noisy version and the time, for classifier guidance.

    The coarsest grid is pooled by attention, with the mean of its positions as the query.

    Source: Dhariwal and Nichol 2021 (ADM), section 4.3: the downsampling half of the U-Net with an attention pool.

    Args:
        in_channels: Channels of the input.
        image_size: Height and width of the input.
        num_classes: Number of labels K.
        channels: Width of the finest grid.
        channel_mults: Width of every level over `channels`, finest first; every level but the first halves the grid.
        num_res_blocks: Residual blocks a level.
        attention_resolutions: Sides of the grids (after patching) that get attention.
        num_heads: Attention heads; divides the width of every level that has attention, and of the coarsest.
        dropout: Probability of dropping an entry within the residual blocks.
        scale_shift: Whether the time scales and shifts a normalisation (AdaGN) instead of being added.
        patch_size: Side of the squares of pixels that are folded into channels before everything else.

    Raises:
        UserError: If the image cannot be halved often enough, or `num_heads` does not divide a width.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        channels: int,
        channel_mults: Sequence[int],
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (),
        num_heads: int = 1,
        dropout: float = 0.0,
        scale_shift: bool = True,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.in_channels, self.num_classes = in_channels, num_classes
        self.patch_size = patch_size
        sides = grid_sides(image_size, len(channel_mults), patch_size)
        widths = [channels * mult for mult in channel_mults]
        factory = StageFactory(
            scale_shift=scale_shift, dropout=dropout, attention_sides=attention_resolutions, num_heads=num_heads
        )
        self.time = TimeEmbedding(4 * channels, num_frequencies=channels // 2)
        self.descent = Descent(
            factory,
            in_channels=in_channels * patch_size**2,
            stem_width=channels,
            widths=widths,
            sides=sides,
            num_res_blocks=num_res_blocks,
        )
        bottom = widths[-1]
        self.middle = factory.middle(bottom)
        self.steering = BlockConditioning(4 * channels, residual_blocks(self.descent, self.middle))
        self.norm = group_norm(bottom)
        self.position = GridPosition((sides[-1], sides[-1]), bottom)
        self.pool = CrossAttention(bottom, bottom, num_heads)
        self.head = nn.Linear(bottom, num_classes)
        # The layout of the activations: convolutions then copy less. (The overloads of `to` do not name it.)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the stages."""
        return stages(self.descent, self.middle)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Compute logits [B, K], at least float32, of x [B, in_channels, h, w] at times t [B] in [0, 1]."""
        conditioning = self.steering(self.time(t))
        x = F.pixel_unshuffle(x, self.patch_size).contiguous(memory_format=torch.channels_last)
        x = self.descent(x, conditioning, None, None)[-1]
        for stage in self.middle:
            x = stage(x, next(conditioning), None, None)
        cells = F.silu(self.norm(x)).flatten(2).transpose(1, 2) + self.position()
        logits: Tensor = self.head(self.pool(cells.mean(1, keepdim=True), cells, None)[:, 0])
        return logits if logits.dtype.itemsize >= 4 else logits.float()
