"""A bidirectional transformer over a grid of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.networks.embeddings import GridPosition, TimeEmbedding
from trilemma.networks.given import check_given
from trilemma.networks.transformer.layers import AdaLNBlock, modulate


class BidirectionalTransformer(nn.Module):
    """Predicts logits of the clean token at every position from all noisy tokens, the time and a condition.

    Every position sees every other. Time and the pooled condition modulate each layer's normalisation (AdaLN-zero); a
    context sequence, where there is one, is read by cross-attention.

    Sources: Gu et al. 2022 (VQ-Diffusion), section 4.2; Peebles and Xie 2023 (DiT), section 3.2.

    Args:
        num_states: Number of token values S that can come in (the classes and, where there is one, the mask).
        num_classes: Number of classes K that are predicted.
        code_shape: The grid, (h, w) or (h, w, c); its product is L.
        dim: Width d.
        depth: Number of layers.
        num_heads: Number of attention heads; divides d.
        condition_dim: Width of the pooled condition; None where there is none.
        context_dim: Width of the context sequence; None where there is none.
        mlp_ratio: Hidden width of the perceptrons over d.
        mlp_kernel: Odd side of a depthwise convolution over (h, w) in each perceptron; 0 has none.
        dropout: Probability of dropping an entry of a residual branch.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `mlp_kernel` is even.
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
        condition_dim: int | None = None,
        context_dim: int | None = None,
        mlp_ratio: float = 4.0,
        mlp_kernel: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")
        self.condition_dim = condition_dim
        self.context_dim = context_dim
        self.token = nn.Embedding(num_states, dim)
        self.position = GridPosition(code_shape, dim)
        self.time = TimeEmbedding(dim)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, dim)
        self.layers = nn.ModuleList(
            AdaLNBlock(
                dim,
                num_heads,
                context_dim=context_dim,
                mlp_ratio=mlp_ratio,
                dropout=dropout,
                grid=code_shape,
                kernel=mlp_kernel,
            )
            for _ in range(depth)
        )
        self.final_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.layers:
            for module in layer.modules():
                if isinstance(module, nn.Linear) and module is not layer.modulation:
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.token.weight, std=0.3)
        # A zero head predicts every class alike: the bound at the first step is finite and known.
        for linear in (self.final_modulation, self.head):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

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
        """Predict the clean tokens.

        Args:
            tokens: Noisy tokens, int64 [B, L], raster order.
            t: Times in [0, 1], [B].
            pooled: Condition, [B, condition_dim]; given exactly where the network was built with one.
            context: Sequence for cross-attention, [B, M, context_dim]; likewise.
            context_mask: True where `context` is valid, [B, M]; all valid where None.

        Returns:
            Logits [B, L, K], never in less than float32.

        Raises:
            ValueError: If a condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        check_given("context", context, self.context_dim, "context_dim")
        conditioning = self.time(t)
        if self.condition is not None:
            conditioning = conditioning + self.condition(pooled)
        conditioning = F.silu(conditioning)

        x = self.token(tokens) + self.position()
        for layer in self.layers:
            x = layer(x, conditioning, context, context_mask)
        shift, scale = self.final_modulation(conditioning)[:, None].to(x.dtype).chunk(2, dim=-1)
        logits: Tensor = self.head(modulate(x, shift, scale))
        return logits if logits.dtype.itemsize >= 4 else logits.float()
