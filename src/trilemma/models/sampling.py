"""Drawing many images in batches whose size does not matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from trilemma.conditions.base import ConditionEncoder
from trilemma.errors import UserError
from trilemma.samplers.guidance import Guidance


class _Conditional(Protocol):
    condition: ConditionEncoder
    training: bool

    def train(self, mode: bool = True) -> Any: ...


def in_batches(
    model: _Conditional,
    draw: Callable[[Any, Tensor], Tensor],
    num_images: int,
    condition: Any,
    first_index: int,
    batch_size: int,
    guidance: Guidance | None = None,
) -> Tensor:
    """Draw images i = first_index .. first_index + num_images - 1 in evaluation mode, a batch at a time.

    Args:
        model: Whose condition encoder checks the condition; its training mode is restored.
        draw: (raw condition of the batch, image indices int64 [b]) -> images [b, ...].
        num_images: How many.
        condition: One label or string for all, a sequence of `num_images`, or None.
        first_index: Index of the first image.
        batch_size: At most so many at once.
        guidance: What the samples are drawn with. One that reads labels itself lets a model that knows none take them.

    Returns:
        Images [num_images, ...].

    Raises:
        UserError: If the number of images or of conditions is wrong, or a condition is unknown.
    """
    if num_images < 1:
        raise UserError(f"num_images={num_images}: ask for at least one image")
    raw = spread(condition, num_images)
    check_condition(model.condition, guidance, raw)
    was_training = model.training
    model.train(False)
    try:
        parts = []
        for start in range(0, num_images, batch_size):
            stop = min(start + batch_size, num_images)
            indices = torch.arange(first_index + start, first_index + stop)
            parts.append(draw(None if raw is None else raw[start:stop], indices))
        return torch.cat(parts)
    finally:
        model.train(was_training)


def check_condition(encoder: ConditionEncoder, guidance: Guidance | None, raw: Any) -> None:
    """See that what is asked for can steer the samples.

    Args:
        encoder: Of the model.
        guidance: What the samples are drawn with.
        raw: One label or caption an image, or None.

    Raises:
        UserError: If the guidance or the encoder does not know it, or neither of them would read it.
    """
    if guidance is not None:
        guidance.check(raw)
    if encoder.steers or guidance is None or guidance.num_labels is None:
        encoder.check(raw)


def spread(condition: Any, num: int) -> Any:
    """One label or string for all, or one each: a list of `num`, or None."""
    if condition is None:
        return None
    if isinstance(condition, Tensor):
        condition = condition.tolist()
    if isinstance(condition, (int, str)):
        return [condition] * num
    if isinstance(condition, Sequence) and len(condition) == num:
        return list(condition)
    raise UserError(f"the condition must be one label for all or a sequence of {num} labels, not {condition!r}")
