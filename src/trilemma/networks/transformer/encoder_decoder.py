"""An encoder-decoder transformer: it reads all of a noisy sequence and writes a less noisy one, token by token.

Shapes: B images, L tokens, K classes, T scales, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.embeddings import GridPosition
from trilemma.networks.given import check_given
from trilemma.networks.transformer.causal import CausalTransformer, KeyValueCache, initialise
from trilemma.networks.transformer.layers import MLP, SelfAttention


class EncoderBlock(nn.Module):
    """Self-attention of every place to every place and an MLP, each after a layer normalisation.

    Args:
        dim: Width d.
        num_heads: Number of attention heads; divides d.
        mlp_ratio: Hidden width of the MLP over d.
        dropout: Probability of dropping an entry of a branch's result.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [B, n, d]."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class EncoderDecoderTransformer(nn.Module):
    """Predicts every token of a scale from those before it, from all tokens of the next noisier scale, and from a condition.

    The encoder reads [scale, tokens] and sees all; the decoder is a `CausalTransformer` that attends to what the encoder gives. The
    condition is added to the scale, and to the decoder's start.

    Source: Esser et al. 2021, "ImageBART: bidirectional context with multinomial diffusion for autoregressive image synthesis".

    Args:
        num_classes: K; None, of a codec of continuous values, is refused.
        code_shape: The grid, (h, w) or (h, w, c); its product is L.
        num_scales: T.
        dim: Width d.
        encoder_depth: Number of layers of the encoder.
        decoder_depth: Number of layers of the decoder.
        num_heads: Number of attention heads; divides d.
        condition_dim: Width of the pooled condition; None where there is none.
        mlp_ratio: Hidden width of the MLPs over d.
        dropout: Probability of dropping an entry of a residual branch, and of the embedded sequences.

    Raises:
        UserError: If there are no classes, `num_heads` does not divide `dim`, or there is no scale.
    """

    def __init__(
        self,
        *,
        num_classes: int | None,
        code_shape: Sequence[int],
        num_scales: int,
        dim: int,
        encoder_depth: int,
        decoder_depth: int,
        num_heads: int,
        condition_dim: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_scales < 1:
            raise UserError(f"network.num_scales={num_scales}: there must be at least one scale of noise")
        self.decoder = CausalTransformer(
            num_classes=num_classes,
            code_shape=code_shape,
            dim=dim,
            depth=decoder_depth,
            num_heads=num_heads,
            condition_dim=condition_dim,
            has_source=True,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
        )
        self.num_classes, self.num_scales = self.decoder.num_classes, num_scales
        self.condition_dim = condition_dim
        self.scale = nn.Embedding(num_scales, dim)
        self.token = nn.Embedding(self.num_classes, dim)
        self.position = GridPosition(code_shape, dim)
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(
            EncoderBlock(dim, num_heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(dim)
        for part in (self.scale, self.token, self.encoder, *filter(None, [self.condition])):
            initialise(part, depth=encoder_depth)
        for axis in self.position.axes:
            nn.init.normal_(axis, std=0.02)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the layers of both."""
        return [*self.encoder, *self.decoder.layers]

    def forward(
        self,
        tokens: Tensor,
        noisy: Tensor,
        scale: Tensor,
        pooled: Tensor | None = None,
        *,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Compute the logits of every token of the less noisy scale; with a cache those of the token after each new one.

        Args:
            tokens: Of the less noisy scale, as `CausalTransformer` takes them.
            noisy: Tokens of the noisier scale, int64 [B, L].
            scale: Number i of that scale, 1 to T, int64 [B].
            pooled: Condition, [B, condition_dim]; given exactly where the network was built with one.
            cache: See `CausalTransformer`; the encoder runs in the first call alone.

        Returns:
            As `CausalTransformer` does.

        Raises:
            ValueError: If the condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        source = None
        if cache is None or cache.length == 0:
            first = self.scale(scale - 1)
            if self.condition is not None:
                first = first + self.condition(pooled)
            x = torch.cat([first[:, None], self.token(noisy) + self.position()], 1)
            x = self.dropout(x)
            for layer in self.encoder:
                x = layer(x)
            source = self.encoder_norm(x)
        logits: Tensor = self.decoder(tokens, pooled, source=source, cache=cache)
        return logits
