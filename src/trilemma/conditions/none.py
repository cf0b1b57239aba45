"""No condition at all."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.errors import UserError


class NoCondition(ConditionEncoder):
    """For unconditional models: labels in a batch are ignored."""

    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Return a condition that carries only the batch size."""
        return Condition(num)

    def check(self, raw: Any) -> None:
        """Refuse any label: this model cannot be steered."""
        if raw is not None:
            raise UserError("this model is unconditional: leave out condition.label")
