"""The U-Net of denoising diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.embeddings import TimeEmbedding
from trilemma.networks.given import check_given
from trilemma.networks.unet.layers import group_norm, zeroed
from trilemma.networks.unet.paths import (
    Ascent,
    BlockConditioning,
    Descent,
    StageFactory,
    grid_sides,
    residual_blocks,
    stages,
)


class UNet(nn.Module):
    """A convolutional network of a noisy image, its time and a condition, with an output of the image's shape.

    A downsampling and an upsampling path with skip connections; time and the pooled condition modulate every
    residual block; the grids named in `attention_resolutions` and the coarsest one between the two middle blocks have
    attention, which also reads the context sequence where there is one. The last layer of every residual branch and
    of the network starts at zero.

    Sources: Ho et al. 2020 (DDPM), appendix B; Dhariwal and Nichol 2021 (ADM), section 3, for `scale_shift`; Hoogeboom
    et al. 2023 (simple diffusion), section 3.2, for `patch_size`. The defaults with `image_size=32` are the network
    that Ho et al. trained on CIFAR-10.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        image_size: Height and width of the input.
        channels: Width of the finest grid.
        channel_mults: Width of every level over `channels`, finest first; every level but the first halves the grid.
        num_res_blocks: Residual blocks a level of the downsampling path; the upsampling path has one more.
        attention_resolutions: Sides of the grids (after patching) that get attention.
        num_heads: Attention heads; divides the width of every level that has attention.
        dropout: Probability of dropping an entry within the residual blocks.
        scale_shift: Whether time and condition scale and shift a normalisation (AdaGN) instead of being added.
        patch_size: Side of the squares of pixels that are folded into channels before everything else.
        condition_dim: Width of the pooled condition; None where there is none.
        context_dim: Width of the context sequence; None where there is none.
        learn_variance: Whether the result has twice the channels: a second map for the learned variance.

    Raises:
        UserError: If the image cannot be halved often enough, or `num_heads` does not divide a width.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        image_size: int,
        channels: int = 128,
        channel_mults: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        dropout: float = 0.0,
        scale_shift: bool = False,
        patch_size: int = 1,
        condition_dim: int | None = None,
        context_dim: int | None = None,
        learn_variance: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.learn_variance = in_channels, out_channels, learn_variance
        self.condition_dim, self.context_dim = condition_dim, context_dim
        self.patch_size = patch_size
        sides = grid_sides(image_size, len(channel_mults), patch_size)
        widths = [channels * mult for mult in channel_mults]
        factory = StageFactory(
            scale_shift=scale_shift,
            dropout=dropout,
            attention_sides=attention_resolutions,
            num_heads=num_heads,
            context_dim=context_dim,
        )

        self.time = TimeEmbedding(4 * channels, num_frequencies=channels // 2)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, 4 * channels)
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
        self.ascent = Ascent(
            factory,
            in_width=bottom,
            skip_widths=self.descent.out_widths,
            widths=widths,
            sides=sides,
            num_res_blocks=num_res_blocks + 1,
        )
        self.steering = BlockConditioning(4 * channels, residual_blocks(self.descent, self.middle, self.ascent))
        self.norm = group_norm(channels)
        self.head = nn.Conv2d(channels, (2 if learn_variance else 1) * out_channels * patch_size**2, 3, padding=1)
        zeroed(self.head)
        # The layout of the activations: convolutions then copy less. (The overloads of `to` do not name it.)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the stages."""
        return stages(self.descent, self.middle, self.ascent)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        pooled: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Transform noisy images.

        Args:
            x: [B, in_channels, h, w].
            t: Times in [0, 1], [B].
            pooled: Condition, [B, condition_dim]; given exactly where the network was built with one.
            context: Sequence for cross-attention, [B, M, context_dim]; likewise.
            context_mask: True where `context` is valid, [B, M]; all valid where None.

        Returns:
            [B, out_channels, h, w]; twice the channels with `learn_variance`.

        Raises:
            ValueError: If a condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        check_given("context", context, self.context_dim, "context_dim")
        embedding = self.time(t)
        if self.condition is not None:
            embedding = embedding + self.condition(pooled)
        conditioning = self.steering(embedding)

        x = F.pixel_unshuffle(x, self.patch_size).contiguous(memory_format=torch.channels_last)
        skips = self.descent(x, conditioning, context, context_mask)
        x = skips[-1]
        for stage in self.middle:
            x = stage(x, next(conditioning), context, context_mask)
        x = self.ascent(x, skips, conditioning, context, context_mask)
        return F.pixel_shuffle(self.head(F.silu(self.norm(x))), self.patch_size).contiguous()
