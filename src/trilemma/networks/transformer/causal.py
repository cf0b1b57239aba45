"""A causal transformer over a sequence of tokens, with a cache of keys and values.

Shapes: B images, L tokens, K classes, M prefix tokens, d width, H heads. A place is one of the M + L of the whole sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.embeddings import GridPosition
from trilemma.networks.given import check_given
from trilemma.networks.transformer.attention_patterns import AttentionPattern, FullAttention, attend_locally
from trilemma.networks.transformer.layers import MLP, CrossAttention, SelfAttention


class KeyValueCache:
    """Keys and values of the places that a causal transformer has seen.

    Attributes:
        length: Number of places that are filled.
        positions: Embeddings of all positions, [L, d] or [B, L, d].
        num_prefix: How many places are the prefix, M.
        mask: Where the prefix is valid, [B, M]; None where all of it is.
    """

    positions: Tensor
    num_prefix: int
    mask: Tensor | None

    def __init__(self) -> None:
        self.length = 0
        self._stores: dict[nn.Module, Tensor] = {}
        self._sources: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, keys_values: Tensor) -> Tensor:
        """Add keys and values [2, B, H, n, d / H] of new places, and return those of all places so far."""
        store = self._stores.get(layer)
        if store is None:  # with room for all that come
            num_places = self.num_prefix + self.positions.shape[-2]
            store = keys_values.new_empty((*keys_values.shape[:3], num_places, keys_values.shape[4]))
            self._stores[layer] = store
        last = self.length + keys_values.shape[3]
        store[:, :, :, self.length : last] = keys_values
        return store[:, :, :, :last]

    def once(self, layer: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """Return the keys and values of a source, computed where the layer has none yet."""
        if layer not in self._sources:
            self._sources[layer] = compute()
        return self._sources[layer]


class CausalSelfAttention(SelfAttention):
    """Multi-head attention of every place to itself and to those before it."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Attend from new places x [B, n, d] to themselves, and to the places that the cache has seen.

        Args:
            x: The new places; where there are several and no mask, they are the first.
            mask: Which places each of them may see, bool [B or 1, 1, n, places]; None for all up to its own.
            memory: Of local attention: see `attend_locally`, as for the mask then.
            cache: What earlier calls have kept, to be added to.
        """
        B, n, d = x.shape
        qkv = self.qkv(x).view(B, n, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        keys_values = qkv[1:] if cache is None else cache.extend(self, qkv[1:])
        k, v = keys_values.unbind(0)
        if memory is None:
            attended = F.scaled_dot_product_attention(qkv[0], k, v, attn_mask=mask, is_causal=mask is None and n > 1)
        else:
            assert mask is not None
            attended = attend_locally(qkv[0], k, v, memory, mask)
        mixed: Tensor = self.out(attended.transpose(1, 2).reshape(B, n, d))
        return mixed


class SourceAttention(CrossAttention):
    """Multi-head attention of every place to all of a source, whose keys and values are computed once a sequence."""

    def forward(  # type: ignore[override]
        self, x: Tensor, source: Tensor | None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Attend from x [B, n, d] to the source [B, S, d]; with a cache that has seen it, it need not be given."""
        B, n, d = x.shape

        def split() -> Tensor:
            assert source is not None
            pairs: Tensor = self.key_value(source).view(B, -1, 2, self.num_heads, d // self.num_heads)
            return pairs.permute(2, 0, 3, 1, 4)

        k, v = (split() if cache is None else cache.once(self, split)).unbind(0)
        q = self.query(x).view(B, n, self.num_heads, -1).transpose(1, 2)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, n, d))
        return mixed


class CausalBlock(nn.Module):
    """Causal self-attention, attention to a source where there is one, and an MLP, each after a layer normalisation.

    Args:
        dim: Width d.
        num_heads: Number of attention heads; divides d.
        has_source: Whether there is a source.
        mlp_ratio: Hidden width of the MLP over d.
        dropout: Probability of dropping an entry of a branch's result.
    """

    def __init__(
        self, dim: int, num_heads: int, *, has_source: bool = False, mlp_ratio: float = 4.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = CausalSelfAttention(dim, num_heads)
        self.source_norm = nn.LayerNorm(dim) if has_source else None
        self.source = SourceAttention(dim, dim, num_heads) if has_source else None
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        cache: KeyValueCache | None = None,
        source: Tensor | None = None,
    ) -> Tensor:
        """Transform x [B, n, d]; the arguments are those of `CausalSelfAttention` and `SourceAttention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, memory, cache))
        if self.source is not None:
            assert self.source_norm is not None
            x = x + self.dropout(self.source(self.source_norm(x), source, cache))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class CausalTransformer(nn.Module):
    """Predicts every token of a sequence from those before it, a pooled condition and a prefix.

    It reads [prefix, start, x_1, ..., x_{L-1}] and predicts x_1, ..., x_L from the start on. The start carries the pooled condition, like
    the token of a class in the first source. The prefix is the condition's sequence, such as a caption's words, with positions
    of its own. Every other place gets the position of the token that it predicts.

    With local attention, places see some of those before them, in the order that it says, and the pooled condition is added to all
    of them; there is no prefix.

    Sources: Esser et al. 2021, "Taming transformers for high-resolution image synthesis", section 3.2; Ramesh et al. 2021 (DALL-E), section
    2.2, for text before the image; Parmar et al. 2018, "Image Transformer", for local attention; Radford et al. 2019 (GPT-2), section
    2.3, for normalisations and initialisation. Different here: a position is a vector for its row plus one for its column, and the head
    starts at zero.

    Args:
        num_classes: K; None, of a codec of continuous values, is refused.
        code_shape: The grid, (h, w) or (h, w, c); its product is L.
        dim: Width d.
        depth: Number of layers.
        num_heads: Number of attention heads; divides d.
        attention: What places see of those before them; None is `FullAttention`.
        condition_dim: Width of the pooled condition; None where there is none.
        context_dim: Width of the prefix; None where there is none.
        has_source: Whether every layer also attends to a source, as a decoder does to what an encoder gives.
        mlp_ratio: Hidden width of the MLPs over d.
        dropout: Probability of dropping an entry of a residual branch, and of the embedded sequence.

    Attributes:
        order: Number, in raster order, of each token of the sequence, int64 [L]; None where that is the order.

    Raises:
        UserError: If there are no classes, `num_heads` does not divide `dim`, or local attention does not fit.
    """

    order: Tensor | None
    memory: Tensor | None
    mask: Tensor | None

    def __init__(
        self,
        *,
        num_classes: int | None,
        code_shape: Sequence[int],
        dim: int,
        depth: int,
        num_heads: int,
        attention: AttentionPattern | None = None,
        condition_dim: int | None = None,
        context_dim: int | None = None,
        has_source: bool = False,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise UserError(
                "a causal transformer predicts classes, and the codec gives continuous values: take codec=vq, codec=pixels_256 or "
                "codec=pixels_2"
            )
        if dim % num_heads:
            raise UserError(f"num_heads={num_heads} does not divide dim={dim}: set network.num_heads to a divisor")
        layout = (attention or FullAttention()).layout(code_shape)
        if layout is not None and context_dim is not None:
            raise UserError(
                "a prefix is not in the memory of local attention: take network/attention=full, or a condition that is one vector"
            )
        self.num_classes = num_classes
        for name in ("order", "memory", "mask"):
            table = None if layout is None else torch.tensor(getattr(layout, name))
            self.register_buffer(name, table, persistent=False)
        self.condition_dim, self.context_dim = condition_dim, context_dim
        self.token = nn.Embedding(num_classes, dim)
        self.position = GridPosition(code_shape, dim)
        self.start = nn.Parameter(torch.empty(dim))
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, dim)
        self.context = None if context_dim is None else nn.Linear(context_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            CausalBlock(dim, num_heads, has_source=has_source, mlp_ratio=mlp_ratio, dropout=dropout)
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        initialise(self, depth=len(self.layers))
        for table in (self.start, *self.position.axes):
            nn.init.normal_(table, std=0.02)
        # A zero head predicts every class alike: the first loss is finite and known.
        nn.init.zeros_(self.head.weight)

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the layers."""
        return list(self.layers)

    def forward(
        self,
        tokens: Tensor,
        pooled: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        *,
        source: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Compute the logits of every token; with a cache those of the token after each new one.

        Args:
            tokens: int64 [B, L], in the network's `order`; with a cache the n that it has not seen, [B, n], none of them perhaps in the
                first call.
            pooled: Condition, [B, condition_dim]; given exactly where the network was built with one.
            context: The prefix, [B, M, context_dim]; likewise.
            context_mask: True where `context` is valid, [B, M]; all valid where None.
            source: See `SourceAttention`, [B, S, d]; given exactly where the network was built with one.
            cache: What earlier calls have kept, to be added to; a new one for new sequences. The first call reads the conditions, later
                ones do without.

        Returns:
            Logits [B, L, K], never in less than float32. With a cache [B, n + 1, K], of the first token and of those that follow the given
            ones; in later calls [B, n, K].

        Raises:
            ValueError: If a condition is missing, or given to a network that was built without.
        """
        first, prefix = 0 if cache is None else cache.length, 0
        if cache is not None and first:
            place = first - cache.num_prefix
            x = self.token(tokens) + cache.positions[..., place : place + tokens.shape[1], :]
            context_mask = cache.mask
        else:
            check_given("pooled", pooled, self.condition_dim, "condition_dim")
            check_given("context", context, self.context_dim, "context_dim")
            start, positions = self._start_and_positions(pooled)
            tokens = tokens[:, :-1] if cache is None else tokens
            x = torch.cat([start.expand(len(tokens), 1, -1), self.token(tokens)], 1)
            x = x + positions[..., : x.shape[1], :]
            if self.context is not None:
                assert context is not None
                prefix = context.shape[1]
                x = torch.cat([self.context(context).to(x.dtype), x], 1)
            if cache is not None:
                cache.positions, cache.num_prefix, cache.mask = positions, prefix, context_mask
        mask, memory = self._sight(first, x.shape[1], context_mask)
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, mask, memory, cache, source)
        if cache is not None:
            cache.length += x.shape[1]
        logits: Tensor = self.head(self.final_norm(x[:, prefix:]))
        return logits if logits.dtype.itemsize >= 4 else logits.float()

    def _start_and_positions(self, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embed the start [d] or [B, 1, d] and the positions [L, d] or [B, L, d], of which one carries the pooled condition."""
        start, positions = self.start, self.position()
        condition = None if self.condition is None else self.condition(pooled)[:, None]
        if self.order is not None:
            positions = positions[self.order]
            return start, positions if condition is None else positions + condition
        return start if condition is None else start + condition, positions

    def _sight(self, first: int, num: int, prefix_mask: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Find what `num` new places from the `first` on see: the mask and the memory of `CausalSelfAttention`."""
        if self.mask is None or self.memory is None:
            return visible(first, num, prefix_mask), None
        num_blocks, block = self.mask.shape[:2]
        if num == num_blocks * block:
            return self.mask, self.memory
        places = torch.arange(first, first + num, device=self.mask.device)  # each a block of its own
        return self.mask[places // block, places % block][:, None], self.memory[places // block]


def initialise(network: nn.Module, *, depth: int) -> None:
    """Draw all weights with deviation 0.02, those at the end of a residual branch with less, so that `depth` layers do not add up to more.

    Source: Radford et al. 2019 (GPT-2), section 2.3.
    """
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            ends_branch = name.endswith((".out", ".fc2"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if ends_branch else 0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def visible(num_seen: int, num_new: int, prefix_mask: Tensor | None) -> Tensor | None:
    """Find which places each new one sees: those up to its own, less what of the prefix is not valid.

    Args:
        num_seen: Number of places before the new ones.
        num_new: Number n of new places.
        prefix_mask: True where the prefix, which are the first places, is valid, [B, M]; None where all of it is.

    Returns:
        bool [B or 1, 1, n, num_seen + n]; None where attention that knows no mask sees the same.
    """
    if prefix_mask is None and (num_seen == 0 or num_new == 1):
        return None
    num_places = num_seen + num_new
    device = None if prefix_mask is None else prefix_mask.device
    own = torch.eye(num_places, dtype=torch.bool, device=device)[num_seen:]
    causal = torch.ones(num_new, num_places, dtype=torch.bool, device=device).tril(num_seen)
    if prefix_mask is None:
        return causal[None, None]
    valid = F.pad(prefix_mask, (0, num_places - prefix_mask.shape[1]), value=True)
    # A place of the prefix that is not valid sees itself, lest its attention be over nothing.
    return ((causal & valid[:, None]) | own)[:, None]
