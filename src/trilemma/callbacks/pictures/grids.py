"""Sample grids and reconstructions drawn during training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.ema import ema_swapped
from trilemma.capabilities import supports
from trilemma.data.batch import Batch
from trilemma.distributed import signals
from trilemma.distributed.sharding import is_sharded
from trilemma.errors import UserError
from trilemma.figures.images import make_grid, save_png, short_name
from trilemma.models.capabilities import Reconstructs, Samples


@runtime_checkable
class ShowsPictures(Protocol):
    """A logger that shows pictures."""

    def log_image(
        self, key: str, images: list[Any], step: int | None = None, *, caption: list[str] | None = None
    ) -> None:
        """Show pictures under one name.

        Args:
            key: The name.
            images: PIL pictures.
            step: Batches trained so far.
            caption: A text for each.
        """


class _NotDrawnError(Exception):
    """A picture is given up, because the program was asked to stop."""


def _stop_when_asked(*_: object) -> None:
    if signals.asked():
        raise _NotDrawnError


def picture(draw: Callable[..., None]) -> Callable[..., None]:
    """Let a callback's method that draws cost a picture at worst, and never the training: an error is one warning.

    A program that was asked to stop draws no more; where weights are sharded all processes draw, and none stops alone.
    """

    @functools.wraps(draw)
    def drawn(self: L.Callback, trainer: L.Trainer, module: L.LightningModule, *args: Any, **options: Any) -> None:
        try:
            if not is_sharded(module):
                _stop_when_asked()
            draw(self, trainer, module, *args, **options)
        except _NotDrawnError:
            pass
        except Exception as error:
            line = " ".join(str(error).split()) or type(error).__name__
            rank_zero_warn(f"{type(self).__name__} has no picture after batch {num_batches(trainer)}: {line}")

    return drawn


class SampleGrid(L.Callback):
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
        self.every_n_batches = every_n_batches
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.seed = seed

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Draw when due."""
        if num_batches(trainer) % self.every_n_batches == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the last grid."""
        if num_batches(trainer) % self.every_n_batches:
            self._draw(trainer, pl_module)

    @picture
    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not takes_part(trainer, module) or not supports(module, Samples):
            return
        rows = module.examples(self.num_rows)
        condition = None if rows is None else [value for value in rows for _ in range(self.num_columns)]
        with undisturbed(module), ema_swapped(trainer, module):
            on_step = None if is_sharded(module) else _stop_when_asked
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


def takes_part(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Check whether this process calls the model for a picture: rank 0 does, or all, where the weights are sharded.

    They then draw the same picture from the same noise, and `publish` writes the first one's.
    """
    return trainer.is_global_zero or is_sharded(module)


@contextmanager
def undisturbed(module: L.LightningModule) -> Iterator[None]:
    """Switch to evaluation mode without gradients inside the block; random states and modes are restored afterwards.

    The precision is that of the weights, unless they are sharded: then they are gathered in that of training.
    """
    modes = [(part, part.training) for part in module.modules()]
    precision = module.trainer.precision_plugin.forward_context() if is_sharded(module) else nullcontext()
    with isolate_rng(), torch.no_grad(), precision:
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


def publish(trainer: L.Trainer, name: str, picture: Image.Image) -> None:
    """Write rank 0's picture to `<run>/<name>/step-00001000.png` and send it to the loggers that show pictures."""
    if not trainer.is_global_zero:
        return
    step = num_batches(trainer)
    save_png(picture, Path(trainer.default_root_dir) / name / f"step-{step:08d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, ShowsPictures):
            # wandb's slider shows a call counter: the caption names the batch.
            logger.log_image(name, [picture], step=step, caption=[f"batch {step}"])
