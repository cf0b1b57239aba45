"""What callbacks that draw have in common: whom they call, what they leave untouched, where a picture goes."""

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
from trilemma.distributed import signals
from trilemma.distributed.sharding import is_sharded
from trilemma.figures.images import save_png


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


def stop_when_asked(*_: object) -> None:
    """Give the picture up, if the program was asked to stop; between the steps of a sampler."""
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
                stop_when_asked()
            draw(self, trainer, module, *args, **options)
        except _NotDrawnError:
            pass
        except Exception as error:
            line = " ".join(str(error).split()) or type(error).__name__
            rank_zero_warn(f"{type(self).__name__} has no picture after batch {num_batches(trainer)}: {line}")

    return drawn


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
