"""A condition of a model, already embedded, and the encoder that embeds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.data.batch import Batch


@dataclass(frozen=True)
class Condition:
    """Embedded condition of a batch of B images.

    Attributes:
        num: Batch size B.
        pooled: One vector an image, [B, d].
        tokens: A sequence an image for cross-attention, [B, M, d].
        mask: True where `tokens` is valid, [B, M].
        null: The unconditional twin of the same batch, for classifier-free guidance; None where the model has none.
        is_null: Whether it is the unconditional twin itself: guidance between it and its twin would change nothing.
        label: The raw labels, int64 [B], where labels were given: what a classifier guides to, whether the model was
            conditioned on labels or not.
    """

    num: int
    pooled: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    null: Condition | None = None
    is_null: bool = False
    label: Tensor | None = None

    def __len__(self) -> int:
        return self.num

    def to(self, device: torch.device | str) -> Condition:
        """Copy the condition, and its null twin, to a device."""

        def move(part: Tensor | None) -> Tensor | None:
            return None if part is None else part.to(device)

        null = None if self.null is None else self.null.to(device)
        return Condition(
            self.num,
            move(self.pooled),
            move(self.tokens),
            move(self.mask),
            null,
            self.is_null,
            move(self.label),
        )

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """Stack several conditions along the batch; their null twins are dropped, and labels that not all of them have.

        Raises:
            ValueError: If one carries an embedding that another lacks.
        """

        def stack(parts: list[Tensor | None]) -> Tensor | None:
            present = [p for p in parts if p is not None]
            if not present:
                return None
            if len(present) != len(parts):
                raise ValueError("cannot stack conditions that carry different fields")
            return torch.cat(present)

        labels = [c.label for c in conditions]
        return Condition(
            sum(len(c) for c in conditions),
            stack([c.pooled for c in conditions]),
            stack([c.tokens for c in conditions]),
            stack([c.mask for c in conditions]),
            label=stack(labels) if all(label is not None for label in labels) else None,
        )


class ConditionEncoder(nn.Module, ABC):
    """Embeds raw labels or strings as a `Condition`; nothing else knows what they are.

    A raw condition is a list of one label or string an image, or None for the null condition.

    Attributes:
        has_null: Whether its conditions come with a null twin.
        steers: Whether what it is given reaches the network; where not, labels can only be meant for a guidance.
    """

    has_null: bool = False
    steers: bool = True

    @abstractmethod
    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Embed a batch.

        Args:
            raw: B labels, a list of B strings, or None for the null condition.
            num: Batch size B.
            drop: True where the condition is replaced by the null one (training), [B].

        Returns:
            The condition, with its `null` twin where the encoder has one.
        """

    @abstractmethod
    def raw_from(self, batch: Batch) -> Any:
        """Extract what it reads from a batch: B labels int64 [B], a list of B strings, or None where it reads nothing.

        Raises:
            UserError: If the batch does not have it.
        """

    @abstractmethod
    def examples(self, num: int) -> list[Any] | None:
        """Choose `num` raw conditions to draw samples of, the same at every call; None where it knows none."""

    @abstractmethod
    def describe(self, raw: Any) -> str:
        """Describe in a few words what samples are conditioned on, as in "label: all in turn"; "none" for None."""

    @abstractmethod
    def check(self, raw: Any) -> None:
        """Raise `UserError` where `raw` is not something this encoder knows (label out of range, no such caption)."""


def shortest_cycle(raw: Sequence[Any]) -> list[Any]:
    """Find the shortest list that, repeated, makes `raw`."""
    values = list(raw)
    for length in range(1, len(values)):
        if all(value == values[i % length] for i, value in enumerate(values)):
            return values[:length]
    return values
