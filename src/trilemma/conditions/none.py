"""No condition at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.errors import UserError


class NoCondition(ConditionEncoder):
    """For unconditional models: the network sees neither labels nor captions. A guidance may read labels."""

    steers = False

    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Return a condition that carries the batch size, and labels where labels were given."""
        captions = isinstance(raw, (list, tuple)) and any(isinstance(value, str) for value in raw)
        return Condition(num, label=None if raw is None or captions else torch.as_tensor(raw))

    def check(self, raw: Any) -> None:
        """Refuse any label: this model cannot be steered."""
        if raw is not None:
            raise UserError("this model is unconditional: leave out condition.label")
