"""Steps of one model, each measured once."""

from __future__ import annotations

import torch

from trilemma.errors import UserError
from trilemma.planning.estimates.layout import Layout
from trilemma.planning.estimates.sizes import blocks_of
from trilemma.planning.estimates.step import Manner, StepWork, measure_step
from trilemma.planning.model import PlannedModel


class Measured:
    """What steps of a model take, at whatever batch and in whatever manner.

    Args:
        planned: The model.
        mixed: Lower precision of a mixed one; None where the precision is not mixed.
    """

    def __init__(self, planned: PlannedModel, mixed: torch.dtype | None) -> None:
        self.planned, self.mixed = planned, mixed
        self.blocks = blocks_of(planned.model)
        self._steps: dict[tuple[int, bool, bool], StepWork] = {}

    def step(self, batch: int, layout: Layout, *, recomputes: bool) -> StepWork:
        """A step with `batch` images on a GPU; with `recomputes` the blocks keep their inputs only.

        Raises:
            UserError: If there are no blocks to recompute.
        """
        if recomputes and not self.blocks:
            name = type(self.planned.model).__name__
            raise UserError(f"activation_checkpointing=true: no network of a {name} has blocks to recompute")
        keeps_copies = layout.strategy != "fsdp" or layout.gathered_share == 1.0
        key = (batch, recomputes, keeps_copies)
        if key not in self._steps:
            manner = Manner(mixed=self.mixed, checkpointed=self.blocks if recomputes else (), keeps_copies=keeps_copies)
            self._steps[key] = measure_step(self.planned.model, self.planned.batch(batch), manner)
        return self._steps[key]

    def otherwise(self, batch: int, layout: Layout, *, recomputes: bool) -> StepWork | None:
        """The same step the other way about; None where there are no blocks to recompute."""
        return self.step(batch, layout, recomputes=not recomputes) if self.blocks else None
