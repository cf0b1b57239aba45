"""Class labels."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.conditions.base import Condition, ConditionEncoder, shortest_cycle
from trilemma.data.batch import Batch
from trilemma.errors import UserError

_NO_LABELS = "condition=label needs a data set with labels: put images into class sub-folders, or take condition=none guidance=none"


class LabelCondition(ConditionEncoder):
    """An embedding per class label and a learned null embedding (index `num_labels`).

    Source: Ho and Salimans 2022 (classifier-free guidance); Tang et al. 2022 (learned null for discrete diffusion).

    Args:
        num_labels: Number of classes; None, of data without labels, is refused.
        embedding_dim: Width d of the pooled embedding.

    Raises:
        UserError: If the data have no labels.
    """

    has_null = True

    def __init__(self, num_labels: int | None, embedding_dim: int) -> None:
        super().__init__()
        if num_labels is None:
            raise UserError(_NO_LABELS)
        self.num_labels = num_labels
        # Unit variance, torch's default: a label embedding much smaller than the time's is learned thousands of batches later.
        self.embedding = nn.Embedding(num_labels + 1, embedding_dim)

    def forward(self, raw: Any, *, num: int, drop: Tensor | None = None) -> Condition:
        """Embed B labels, replacing dropped ones by the null embedding; None means the null condition for all.

        Raises:
            ValueError: If there are not as many labels as images.
        """
        device = self.embedding.weight.device
        nulls = torch.full((num,), self.num_labels, device=device)
        given = None if raw is None else torch.as_tensor(raw, device=device)
        labels = nulls if given is None else given
        if labels.shape != (num,):
            raise ValueError(f"{labels.numel()} labels for {num} images")
        if drop is not None:
            labels = torch.where(drop, nulls, labels)
        null = Condition(num, self.embedding(nulls), is_null=True)
        return Condition(num, self.embedding(labels), null=null, is_null=given is None, label=given)

    def raw_from(self, batch: Batch) -> Tensor:
        """See `ConditionEncoder`; int64 [B]."""
        if "label" not in batch:
            raise UserError(_NO_LABELS)
        return batch["label"]

    def examples(self, num: int) -> list[int]:
        """See `ConditionEncoder`; all labels in turn."""
        return labels_in_turn(num, self.num_labels)

    def describe(self, raw: Any) -> str:
        """See `ConditionEncoder`."""
        return describe_labels(raw, self.num_labels)

    def check(self, raw: Any) -> None:
        """Refuse what is not a label, or a sequence of labels, in 0..num_labels-1."""
        check_labels(raw, self.num_labels)


def labels_in_turn(num: int, num_labels: int) -> list[int]:
    """List the labels of `num` images: 0, 1, ..., num_labels - 1, 0, ..."""
    return [i % num_labels for i in range(num)]


def describe_labels(raw: Any, num_labels: int) -> str:
    """Describe what samples of labels `raw` are conditioned on: all in turn, one of them, or a list in turn."""
    if raw is None:
        return "none"
    values = torch.as_tensor(raw).tolist()
    cycle = shortest_cycle(values)
    if len(cycle) == 1:
        return f"label: {cycle[0]}"
    return "label: all in turn" if values == labels_in_turn(len(values), num_labels) else f"label: {cycle}"


def check_labels(raw: Any, num_labels: int) -> None:
    """Refuse what is not a label, or a sequence of labels, in 0..num_labels-1; None passes.

    Raises:
        UserError: For the first value that is no label.
    """
    if raw is None:
        return
    values: list[Any]
    if isinstance(raw, Tensor):
        values = raw.flatten().tolist()
    else:
        values = list(raw) if isinstance(raw, Iterable) and not isinstance(raw, str) else [raw]
    for value in values:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or not 0 <= value < num_labels:
            raise UserError(f"condition.label={value!r} is not a label: labels are 0 to {num_labels - 1}")
