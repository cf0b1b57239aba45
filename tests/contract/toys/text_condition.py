"""Captions of known words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.conditions.base import Condition, ConditionEncoder, shortest_cycle
from trilemma.data.batch import Batch
from trilemma.errors import UserError


class TextCondition(ConditionEncoder):
    """A learned embedding a word, their mean, and a learned null.

    Args:
        captions: Captions that are known as examples; their words are the vocabulary, the longest one the length M.
        embedding_dim: Width of the pooled embedding.
        context_dim: Width of the words' embeddings.

    Raises:
        UserError: If there are no captions.
    """

    has_null = True

    def __init__(self, captions: Sequence[str], *, embedding_dim: int, context_dim: int) -> None:
        super().__init__()
        if not captions:
            raise UserError("condition.captions: a vocabulary needs at least one caption")
        self.captions = list(captions)
        self.numbers = {word: i for i, word in enumerate(sorted({w for c in captions for w in c.split()}))}
        self.max_words = max(len(caption.split()) for caption in captions)
        self.words = nn.Embedding(len(self.numbers) + 1, context_dim)  # the last one stands where there is no word
        self.null = nn.Parameter(torch.randn(context_dim))
        self.pool = nn.Linear(context_dim, embedding_dim)

    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Embed B captions, where not dropped; None means the null condition for all.

        Raises:
            ValueError: If there are not as many captions as images.
        """
        device = self.null.device
        null = self._condition(*self._nothing(num, device), is_null=True)
        if raw is None:
            return self._condition(*self._nothing(num, device), null=null, is_null=True)
        if len(raw) != num:
            raise ValueError(f"{len(raw)} captions for {num} images")
        rows = [[self.numbers[word] for word in caption.split()] for caption in raw]
        padded = [row + [len(self.numbers)] * (self.max_words - len(row)) for row in rows]
        indices = torch.tensor(padded, device=device)
        tokens, mask = self.words(indices), indices < len(self.numbers)
        if drop is not None:
            null_tokens, null_mask = self._nothing(num, device)
            tokens = torch.where(drop[:, None, None], null_tokens, tokens)
            mask = torch.where(drop[:, None], null_mask, mask)
        return self._condition(tokens, mask, null=null)

    def _nothing(self, num: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The null in the first place, [B, M, d], and the mask of it, [B, M]."""
        mask = (torch.arange(self.max_words, device=device) == 0).expand(num, -1)
        return self.null.expand(num, self.max_words, -1), mask

    def _condition(
        self, tokens: Tensor, mask: Tensor, *, null: Condition | None = None, is_null: bool = False
    ) -> Condition:
        mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return Condition(len(tokens), self.pool(mean), tokens, mask, null=null, is_null=is_null)

    def raw_from(self, batch: Batch) -> list[str]:
        """See `ConditionEncoder`."""
        if "caption" not in batch:
            raise UserError(
                "condition=toy_text needs a data set with captions: take data=toy_captions, or condition=none"
            )
        self.check(batch["caption"])
        return batch["caption"]

    def examples(self, num: int) -> list[str]:
        """See `ConditionEncoder`; all captions in turn."""
        return [self.captions[i % len(self.captions)] for i in range(num)]

    def describe(self, raw: Any) -> str:
        """See `ConditionEncoder`."""
        if raw is None:
            return "none"
        if list(raw) == self.examples(len(raw)):
            return "caption: all in turn"
        cycle = shortest_cycle(raw)
        return f"caption: {cycle[0] if len(cycle) == 1 else cycle}"

    def check(self, raw: Any) -> None:
        """Refuse captions with unknown words, or too many of them; None passes."""
        for caption in () if raw is None else raw:
            if not isinstance(caption, str):
                raise UserError(
                    f"this model reads captions, not {caption!r}: give condition.caption=... instead of condition.label"
                )
            words = caption.split()
            if unknown := [word for word in words if word not in self.numbers]:
                raise UserError(
                    f"condition.caption={caption!r}: unknown word {unknown[0]!r}; known are {', '.join(self.numbers)}"
                )
            if not 1 <= len(words) <= self.max_words:
                raise UserError(f"condition.caption={caption!r}: a caption has 1 to {self.max_words} words")
