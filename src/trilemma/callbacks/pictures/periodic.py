"""Pictures drawn every so many batches and at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import lightning as L

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.ema import ema_swapped
from trilemma.callbacks.pictures.drawing import picture, takes_part, undisturbed


class PeriodicPicture(L.Callback, ABC):
    """Draws every so many batches and at the end, with averaged weights where there are any.

    Training's random generators are left untouched.

    Args:
        every_n_batches: How often.
    """

    def __init__(self, every_n_batches: int) -> None:
        self.every_n_batches = every_n_batches

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Draw when due."""
        if num_batches(trainer) % self.every_n_batches == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last picture."""
        if num_batches(trainer) % self.every_n_batches:
            self.draw(trainer, pl_module)

    @picture
    def draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Draw now, if the family can be drawn."""
        if takes_part(trainer, module) and self._can_draw(module):
            with undisturbed(module), ema_swapped(trainer, module):
                self._draw(trainer, module)

    @abstractmethod
    def _can_draw(self, module: L.LightningModule) -> bool:
        """Whether the family has what is drawn; others are skipped."""

    @abstractmethod
    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        """Draw on rank 0, or on all ranks where the weights are sharded."""
