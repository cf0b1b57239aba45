"""Pictures of the latents of a model, drawn during training: a manifold of two, points by class, interpolations."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from trilemma.callbacks.pictures.drawing import picture, publish, takes_part, undisturbed
from trilemma.callbacks.pictures.periodic import PeriodicPicture
from trilemma.capabilities import supports
from trilemma.data.base import ImageData
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.figures.images import make_grid, short_name
from trilemma.figures.latents import interpolate_latents, latent_scatter, manifold
from trilemma.figures.trajectory_pictures import interpolation_picture
from trilemma.models.capabilities import DecodesLatents, EncodesLatents, Samples


class LatentManifold(PeriodicPicture):
    """Draws images at the quantiles of a prior of two latents, `manifold/step-00001000.png`, periodically and at the end.

    Families with other latents, or none, are skipped. A conditional model is drawn under its first label or caption.

    Args:
        every_n_batches: How often.
        num_side: Images a side.
    """

    def __init__(self, every_n_batches: int = 1000, *, num_side: int = 20) -> None:
        if min(every_n_batches, num_side) < 1:
            raise UserError(
                f"every_n_batches={every_n_batches} and num_side={num_side} must be at least 1 in the latent manifold"
            )
        super().__init__(every_n_batches)
        self.num_side = num_side

    def _can_draw(self, module: L.LightningModule) -> bool:
        return supports(module, DecodesLatents) and module.latent_dim() == 2

    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        rows = module.examples(1) if supports(module, Samples) else None
        images = manifold(module, self.num_side, None if rows is None else rows[0])
        names = None if rows is None else [short_name(rows[0])] + [""] * (self.num_side - 1)
        publish(trainer, "manifold", make_grid(images, self.num_side, padding=0, row_labels=names))


class LatentScatter(L.Callback):
    """Draws where validation images lie among the latents, by class, `latent_scatter/step-00001000.png`, at each validation.

    Of more than two latents it is the plane of their principal components. Families that find no latents of images, and data
    without labels, are skipped.

    Args:
        num_images: The first so many of each process, at least 2.
    """

    def __init__(self, num_images: int = 1000) -> None:
        if num_images < 2:
            raise UserError(f"num_images={num_images} of the latent scatter must be at least 2")
        self.num_images = num_images
        self._found: list[tuple[Tensor, Tensor]] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget the images of before."""
        self._found = []

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
        """Encode the images of a batch; averaged weights are in place."""
        left = self.num_images - sum(len(labels) for _, labels in self._found)
        if left < 1 or trainer.sanity_checking or not takes_part(trainer, pl_module):
            return
        if supports(pl_module, EncodesLatents) and pl_module.latent_dim() > 1 and "image" in batch and "label" in batch:
            with undisturbed(pl_module):
                self._found.append((pl_module.to_latents(batch["image"][:left]), batch["label"][:left]))

    @picture
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw what was encoded."""
        if not self._found or not trainer.is_global_zero:
            return
        z, labels = (torch.cat(parts).cpu() for parts in zip(*self._found, strict=True))
        data = getattr(trainer, "datamodule", None)
        names = data.label_names if isinstance(data, ImageData) else None
        publish(
            trainer,
            "latent_scatter",
            latent_scatter(z, labels, names or [str(i) for i in range(int(labels.max()) + 1)]),
        )


class LatentInterpolation(L.Callback):
    """Draws validation images between two others, through their latents, `interpolation/step-00001000.png`, at each validation.

    Families that find no latents of images are skipped.

    Args:
        num_pairs: Of images, one row each: the first and the second, the third and the fourth.
        num_steps: Images in a row between the data, at least 2.
    """

    def __init__(self, num_pairs: int = 6, *, num_steps: int = 9) -> None:
        if num_pairs < 1 or num_steps < 2:
            raise UserError(
                f"num_pairs={num_pairs} must be at least 1 and num_steps={num_steps} at least 2 in the latent interpolation"
            )
        self.num_pairs = num_pairs
        self.num_steps = num_steps

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
        """Draw pairs of the first batch."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not takes_part(trainer, pl_module):
            return
        if not supports(pl_module, EncodesLatents) or "image" not in batch or len(batch["image"]) < 2:
            return
        num = min(self.num_pairs, len(batch["image"]) // 2)
        first, last = batch["image"][0 : 2 * num : 2], batch["image"][1 : 2 * num : 2]
        weights = [i / (self.num_steps - 1) for i in range(self.num_steps)]
        with undisturbed(pl_module):
            between = interpolate_latents(pl_module, first, last, weights)
        publish(trainer, "interpolation", interpolation_picture(first.cpu(), between.cpu(), last.cpu(), weights))
