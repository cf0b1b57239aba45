"""The learning rate as a metric."""

from __future__ import annotations

from typing import Any

import lightning as L


class LearningRate(L.Callback):
    """Logs `train/lr` beside the loss, or `train/lr_0`, `train/lr_1`, ... where there are several optimisers, or groups that differ.

    Unlike Lightning's monitor it writes into the row of the training loss and needs no logger to exist.
    """

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Log the learning rate of this batch."""
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if len(trainer.optimizers) == 1 and len(set(rates)) == 1:
            pl_module.log("train/lr", rates[0])
        else:
            pl_module.log_dict({f"train/lr_{i}": rate for i, rate in enumerate(rates)})
