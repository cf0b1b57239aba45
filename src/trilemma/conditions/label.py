"""Class labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.errors import UserError


class LabelCondition(ConditionEncoder):
    """An embedding per class label and a learned null embedding (index `num_labels`).

    Source: Ho and Salimans 2022 (classifier-free guidance); Tang et al. 2022 (learned null for discrete diffusion).

    Args:
        num_labels: Number of classes.
        embedding_dim: Width d of the pooled embedding.
    """

    has_null = True

    def __init__(self, num_labels: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.embedding = nn.Embedding(num_labels + 1, embedding_dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Embed labels int64 [B]; None means the null condition for all."""
        device = self.embedding.weight.device
        nulls = torch.full((num,), self.num_labels, device=device)
        labels = nulls if raw is None else torch.as_tensor(raw, device=device)
        if drop is not None:
            labels = torch.where(drop, nulls, labels)
        return Condition(num, self.embedding(labels), null=Condition(num, self.embedding(nulls)))

    def check(self, raw: Any) -> None:
        """Refuse labels outside 0..num_labels-1."""
        if raw is None:
            return
        wrong = [x for x in torch.as_tensor(raw).flatten().tolist() if not 0 <= x < self.num_labels]
        if wrong:
            raise UserError(f"condition.label={wrong[0]} is out of range: labels are 0 to {self.num_labels - 1}")
