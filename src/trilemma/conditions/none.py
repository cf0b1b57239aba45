"""No condition at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError


class NoCondition(ConditionEncoder):
    """No condition: the network sees neither labels nor captions. A guidance may read labels."""

    steers = False

    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Return a condition that carries the batch size, and labels where labels were given."""
        labelled = isinstance(raw, Tensor) or (raw is not None and not any(isinstance(value, str) for value in raw))
        return Condition(num, label=torch.as_tensor(raw) if labelled else None)

    def raw_from(self, batch: Batch) -> None:
        """See `ConditionEncoder`."""

    def examples(self, num: int) -> None:
        """See `ConditionEncoder`."""

    def describe(self, raw: Any) -> str:
        """See `ConditionEncoder`."""
        return "none"

    def check(self, raw: Any) -> None:
        """Refuse any label: this model is unconditional."""
        if raw is not None:
            raise UserError("this model is unconditional: leave out condition.label")
