"""A recurrent network over a sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trilemma.networks.given import check_given


class CausalGRU(nn.Module):
    """Logits of every position from the tokens before it; what it remembers of them is one vector.

    Args:
        num_classes: K.
        code_shape: (h, w) or (h, w, c); its product is L.
        dim: Width d.
        condition_dim: Width of the pooled condition; None where there is none.
    """

    def __init__(
        self, *, num_classes: int, code_shape: Sequence[int], dim: int, condition_dim: int | None = None
    ) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.dim = dim
        self.token = nn.Embedding(num_classes + 1, dim)  # the last one begins a sequence
        self.position = nn.Parameter(0.02 * torch.randn(math.prod(code_shape), dim))
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, dim)
        self.recurrent = nn.GRU(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, num_classes)

    def forward(
        self, tokens: Tensor, first: int, pooled: Tensor | None = None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the tokens that follow.

        Args:
            tokens: Tokens before positions first, first + 1, ...; K before the first of all, int64 [B, M].
            first: Position that the first of them precedes.
            pooled: Condition [B, condition_dim]; given exactly where the network was built with one.
            memory: Of the tokens before these, [1, B, d]; None at the beginning.

        Returns:
            Logits [B, M, K], and the memory of these tokens too.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        x = self.token(tokens) + self.position[first : first + tokens.shape[1]]
        if self.condition is not None:
            x = x + self.condition(pooled)[:, None]
        hidden, memory = self.recurrent(x, memory)
        return self.head(hidden), memory
