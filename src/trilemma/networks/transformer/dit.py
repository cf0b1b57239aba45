"""The diffusion transformer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.embeddings import GridPosition, TimeEmbedding
from trilemma.networks.given import check_given
from trilemma.networks.transformer.layers import AdaLNBlock, modulate


class DiT(nn.Module):
    """A transformer over the patches of a noisy image, with an output of the image's shape.

    Time and the pooled condition modulate every layer's normalisation (AdaLN-zero); a context sequence, where there is
    one, is read by cross-attention. The head and all gates start at zero.

    Source: Peebles and Xie 2023 (DiT), section 3.2. Different here: the position of a patch is a learned vector for its
    row plus one for its column, the MLPs have the exact GELU, and the condition is embedded by the model that built
    it and only projected here.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        image_size: Height and width of the input.
        patch_size: Height and width of a patch.
        dim: Width d.
        depth: Number of layers.
        num_heads: Number of attention heads; divides d.
        condition_dim: Width of the pooled condition; None where there is none.
        context_dim: Width of the context sequence; None where there is none.
        mlp_ratio: Hidden width of the perceptrons over d.
        mlp_kernel: Odd side of a depthwise convolution over the patches in each perceptron; 0 has none.
        dropout: Probability of dropping an entry of a residual branch.
        learn_variance: Whether the result has twice the channels: a second map for the learned variance.

    Raises:
        UserError: If patches do not tile the image, or `num_heads` does not divide `dim`.
        ValueError: If `mlp_kernel` is even.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        image_size: int,
        patch_size: int,
        dim: int,
        depth: int,
        num_heads: int,
        condition_dim: int | None = None,
        context_dim: int | None = None,
        mlp_ratio: float = 4.0,
        mlp_kernel: int = 0,
        dropout: float = 0.0,
        learn_variance: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise UserError(
                f"patches of {patch_size} do not tile an image of side {image_size}: "
                f"set data.size to a multiple of {patch_size}, or network.patch_size to a divisor of {image_size}"
            )
        if dim % num_heads:
            raise UserError(f"num_heads={num_heads} does not divide dim={dim}: set network.num_heads to a divisor")
        self.in_channels, self.out_channels, self.learn_variance = in_channels, out_channels, learn_variance
        self.condition_dim, self.context_dim = condition_dim, context_dim
        self.patch_size = patch_size
        side = image_size // patch_size
        self.patch = nn.Linear(in_channels * patch_size**2, dim)
        self.position = GridPosition((side, side), dim)
        self.time = TimeEmbedding(dim, num_frequencies=128)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, dim)
        self.layers = nn.ModuleList(
            AdaLNBlock(
                dim,
                num_heads,
                context_dim=context_dim,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                grid=(side, side),
                kernel=mlp_kernel,
            )
            for _ in range(depth)
        )
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, (2 if learn_variance else 1) * out_channels * patch_size**2)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear) and module is not layer.modulation:
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch.weight)
        for linear in (self.final_modulation, self.head):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the layers."""
        return list(self.layers)

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
        conditioning = self.time(t)
        if self.condition is not None:
            conditioning = conditioning + self.condition(pooled)
        conditioning = F.silu(conditioning)

        patches = F.pixel_unshuffle(x, self.patch_size)  # [B, C p^2, h / p, w / p]
        tokens = self.patch(patches.flatten(2).transpose(1, 2)) + self.position()
        for layer in self.layers:
            tokens = layer(tokens, conditioning, context, context_mask)
        shift, scale = self.final_modulation(conditioning)[:, None].to(tokens.dtype).chunk(2, dim=-1)
        pieces: Tensor = self.head(modulate(tokens, shift, scale))
        B, _, h, w = patches.shape
        return F.pixel_shuffle(pieces.transpose(1, 2).reshape(B, -1, h, w), self.patch_size)
