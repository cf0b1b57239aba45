"""Count the batches of a run, whatever the number of optimisers or processes."""

from __future__ import annotations

import lightning as L


def num_batches(trainer: L.Trainer) -> int:
    """Count the training batches this run has seen, the current one included; the count continues after a resume.

    `trainer.global_step` counts optimiser steps, which two optimisers double and gradient accumulation divides.
    """
    return int(trainer.fit_loop.total_batch_idx) + 1


def planned_batches(trainer: L.Trainer) -> int | None:
    """Compute the number of batches at which the run will end, or None where the trainer sets no limit.

    `max_steps` is a limit in optimiser steps and so only says it for one optimiser; with several, one pass over the
    loader is the run.
    """
    one_optimizer = trainer.lightning_module.automatic_optimization
    if trainer.max_steps != -1 and one_optimizer:
        return trainer.max_steps * trainer.accumulate_grad_batches
    if trainer.num_training_batches == float("inf"):
        return None
    return int(trainer.num_training_batches) * max(trainer.max_epochs or 1, 1)
