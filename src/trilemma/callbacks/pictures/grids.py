"""Sample grids and reconstructions drawn during training."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from trilemma.callbacks.pictures.drawing import picture, publish, stop_when_asked, takes_part, undisturbed
from trilemma.callbacks.pictures.periodic import PeriodicPicture
from trilemma.capabilities import supports
from trilemma.data.batch import Batch
from trilemma.distributed.sharding import is_sharded
from trilemma.errors import UserError
from trilemma.figures.images import make_grid, short_name
from trilemma.models.capabilities import Reconstructs, Samples


class SampleGrid(PeriodicPicture):
    """Draws a grid of samples into `samples/step-00001000.png`, periodically and at the end, always from the same noise.

    Averaged weights are used where there are any, and training's random generators are left untouched. Families that
    do not sample are skipped. A conditional model gets one row a label, or caption.

    Args:
        every_n_batches: How often.
        num_rows: Of the grid.
        num_columns: Of the grid.
        seed: Of the noise.
    """

    def __init__(self, every_n_batches: int = 1000, *, num_rows: int = 10, num_columns: int = 8, seed: int = 0) -> None:
        if min(every_n_batches, num_rows, num_columns) < 1:
            raise UserError("every_n_batches, num_rows and num_columns of the sample grid must be at least 1")
        super().__init__(every_n_batches)
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.seed = seed

    def _can_draw(self, module: L.LightningModule) -> bool:
        return supports(module, Samples)

    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        rows = module.examples(self.num_rows)
        condition = None if rows is None else [value for value in rows for _ in range(self.num_columns)]
        on_step = None if is_sharded(module) else stop_when_asked
        num = self.num_rows * self.num_columns
        images = module.sample(num, condition=condition, seed=self.seed, on_step=on_step)
        names = None if rows is None else [short_name(value) for value in rows]
        publish(trainer, "samples", make_grid(images, self.num_columns, row_labels=names))


class Reconstructions(L.Callback):
    """Draws the first validation images above their reconstructions, at each validation.

    The pictures are `reconstructions/step-00001000.png`. Families that do not reconstruct are skipped.

    Args:
        num_images: How many, one column each.
    """

    def __init__(self, num_images: int = 16) -> None:
        if num_images < 1:
            raise UserError("num_images of the reconstructions must be at least 1")
        self.num_images = num_images

    @picture
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
        if batch_idx or dataloader_idx or trainer.sanity_checking or not takes_part(trainer, pl_module):
            return
        if not supports(pl_module, Reconstructs) or "image" not in batch:
            return
        images = batch["image"][: self.num_images]
        with undisturbed(pl_module):
            pairs = torch.cat([images, pl_module.reconstruct(images)])
        publish(trainer, "reconstructions", make_grid(pairs, len(images), row_labels=["data", "model"]))
