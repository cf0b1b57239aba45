"""Watch for mode collapse: classes that are no longer drawn."""

from __future__ import annotations

from typing import Protocol

import lightning as L
import torch
from torch import Tensor

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.monitors.base import Monitor
from trilemma.callbacks.pictures.drawing import takes_part, undisturbed
from trilemma.capabilities import supports
from trilemma.data.base import ImageData
from trilemma.data.images import to_uint8
from trilemma.errors import UserError
from trilemma.models.capabilities import Samples


class Labeller(Protocol):
    """A classifier of images that names their class."""

    def num_classes(self, data: ImageData) -> int | None:
        """Count the classes K that it distinguishes in this data set's images, or None where it knows none."""

    def labels(self, data: ImageData, images: Tensor) -> Tensor:
        """Classify images uint8 [N, C, H, W] of this data set: classes int64 [N], on the CPU."""


class ModeHistogram(Monitor):
    """Draws samples at some validations, counts their classes, and warns, or stops, where classes are missing.

    Logged are `val/modes_hit` (classes drawn at least once), `val/class_tv` (total variation distance to the uniform distribution,
    which N independent samples of K equal classes do not bring below about sqrt(K / (2 pi N))) and, for a model
    conditioned on labels, `val/label_accuracy`: labels are then taken in turn, as in the grid of samples.

    Averaged weights are used where there are any, and training's random generators are left untouched. Families that do
    not sample and data sets that the labeller does not know are skipped.

    Args:
        labeller: Tells classes apart.
        every_n_batches: How often, at the validation that is due then or next.
        num_images: How many samples.
        min_share: Least share of the classes that must be drawn, in [0, 1].
        seed: Of the noise.
        stop: See `Monitor`.
    """

    def __init__(
        self,
        *,
        labeller: Labeller,
        every_n_batches: int = 1000,
        num_images: int = 100,
        min_share: float = 0.5,
        seed: int = 0,
        stop: bool = False,
    ) -> None:
        super().__init__(stop=stop)
        if every_n_batches < 1 or num_images < 1 or not 0.0 <= min_share <= 1.0:
            raise UserError(
                f"every_n_batches={every_n_batches} and num_images={num_images} must be at least 1 and min_share={min_share} "
                "lie in [0, 1] in the mode histogram"
            )
        self.labeller = labeller
        self.every_n_batches = every_n_batches
        self.num_images = num_images
        self.min_share = min_share
        self.seed = seed
        self._problem: str | None = None
        self._judged = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, count and log; the averaged weights are swapped in here."""
        data = getattr(trainer, "datamodule", None)
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._is_due(trainer):
            return
        if not supports(pl_module, Samples) or not isinstance(data, ImageData):
            return
        num_classes = self.labeller.num_classes(data)
        if num_classes is None:
            return
        figures = self._measure(pl_module, data, num_classes) if takes_part(trainer, pl_module) else None
        figures = trainer.strategy.broadcast(figures)
        assert figures is not None
        pl_module.log_dict(figures, sync_dist=True)
        hit = int(figures["val/modes_hit"])
        few = hit < self.min_share * num_classes
        self._problem = f"{self.num_images} samples show {hit} of {num_classes} classes" if few else None
        self._judged = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check for missing classes, once the metrics are written."""
        if not self._judged:
            self._judged = True
            self.judge(trainer, self._problem)

    def _is_due(self, trainer: L.Trainer) -> bool:
        # The first validation in each stretch of `every_n_batches`: nothing needs to be remembered over a resume.
        return num_batches(trainer) % self.every_n_batches < (trainer.val_check_batch or 1)

    def _measure(self, module: Samples, data: ImageData, num_classes: int) -> dict[str, float]:
        assert isinstance(module, L.LightningModule)
        asked = module.examples(self.num_images)
        with undisturbed(module):
            images = module.sample(self.num_images, condition=asked, seed=self.seed)
            shown = self.labeller.labels(data, to_uint8(images).cpu())
        counts = torch.bincount(shown, minlength=num_classes).double()
        share = counts / counts.sum()
        figures = {
            "val/modes_hit": float((counts > 0).sum()),
            "val/class_tv": float((share - 1 / num_classes).abs().sum() / 2),
        }
        if asked is not None and all(isinstance(value, int) for value in asked):
            figures["val/label_accuracy"] = float((shown == torch.tensor(asked)).double().mean())
        return figures
