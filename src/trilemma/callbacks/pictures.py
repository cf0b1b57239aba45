"""Pictures drawn while training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.ema import ema_swapped
from trilemma.conditions.label import LabelCondition
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.images import make_grid, save_png
from trilemma.models.base import Reconstructs, Samples


class SampleGrid(L.Callback):
    """Draws a grid of samples into `samples/step=00001000.png`, the same noise and labels each time.

    Averaged weights are used where there are any, and training's random generators are left untouched. Families that
    do not sample are passed over. A conditional model's images are sorted by label, and labelled.

    Args:
        every_n_batches: How often.
        num_images: How many.
        num_columns: Of the grid.
        seed: Of the noise.
    """

    def __init__(
        self, every_n_batches: int = 1000, *, num_images: int = 80, num_columns: int = 8, seed: int = 0
    ) -> None:
        if min(every_n_batches, num_images, num_columns) < 1:
            raise UserError("every_n_batches, num_images and num_columns of the sample grid must be at least 1")
        self.every_n_batches = every_n_batches
        self.num_images = num_images
        self.num_columns = num_columns
        self.seed = seed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Draw where it is time."""
        if num_batches(trainer) % self.every_n_batches or not isinstance(pl_module, Samples):
            return
        if trainer.is_global_zero:
            labels = self._labels(pl_module)
            with undisturbed(pl_module), ema_swapped(trainer, pl_module):
                images = pl_module.sample(self.num_images, condition=labels, seed=self.seed)
            names = None if labels is None else [str(label) for label in labels]
            _publish(trainer, "samples", images, num_columns=self.num_columns, labels=names)

    def _labels(self, module: L.LightningModule) -> list[int] | None:
        encoder = getattr(module, "condition", None)
        if not isinstance(encoder, LabelCondition):
            return None
        return [i * encoder.num_labels // self.num_images for i in range(self.num_images)]


class Reconstructions(L.Callback):
    """Draws the first validation images and below them what the model makes of them, at each validation.

    The pictures are `reconstructions/step=00001000.png`. Families that do not reconstruct are passed over.

    Args:
        num_images: How many, one column each.
    """

    def __init__(self, num_images: int = 16) -> None:
        if num_images < 1:
            raise UserError("num_images of the reconstructions must be at least 1")
        self.num_images = num_images

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch's first images."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if not isinstance(pl_module, Reconstructs) or "image" not in batch:
            return
        images = batch["image"][: self.num_images]
        with undisturbed(pl_module):
            pairs = torch.cat([images, pl_module.reconstruct(images)])
        _publish(trainer, "reconstructions", pairs, num_columns=len(images), labels=None)


@contextmanager
def undisturbed(module: L.LightningModule) -> Iterator[None]:
    """Evaluation mode without gradients; random generators and every submodule's mode are as before afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    with isolate_rng(), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def _publish(trainer: L.Trainer, name: str, images: Tensor, *, num_columns: int, labels: list[str] | None) -> None:
    step = num_batches(trainer)
    grid = make_grid(images, num_columns=num_columns, labels=labels)
    path = Path(trainer.default_root_dir) / name / f"step={step:08d}.png"
    save_png(grid, path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            # wandb gives images no axis of their own: the caption says the step.
            logger.log_image(
                name, [str(path)], step=trainer.fit_loop.epoch_loop._batches_that_stepped, caption=[f"batch {step}"]
            )
