"""A picture of a walk through the latents of a model, drawn during training."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from trilemma.callbacks.pictures.drawing import publish
from trilemma.callbacks.pictures.periodic import PeriodicPicture
from trilemma.capabilities import supports
from trilemma.errors import UserError
from trilemma.figures.images import make_grid, short_name
from trilemma.models.capabilities import DecodesLatents, Samples
from trilemma.processes.noise import Noise
from trilemma.samplers.gaussian.inversion import slerp


class LatentWalk(PeriodicPicture):
    """Draws images along a walk through the latents into `latent_walk/step-00001000.png`, periodically and at the end.

    Row i goes from latent i to latent i + 1, along their great circle, so that the next row goes on where it ends. A conditional model
    keeps one label, or caption, in a row. Sudden changes show a model that has learnt images by heart (Radford et al. 2016, section 6.1
    and figure 4). Families without latents are skipped.

    Args:
        every_n_batches: How often.
        num_rows: Of the picture.
        num_columns: Of the picture, at least 2.
        seed: Of the latents.
    """

    def __init__(self, every_n_batches: int = 1000, *, num_rows: int = 9, num_columns: int = 10, seed: int = 0) -> None:
        if min(every_n_batches, num_rows) < 1 or num_columns < 2:
            raise UserError(
                f"every_n_batches={every_n_batches} and num_rows={num_rows} must be at least 1 and num_columns={num_columns} at least "
                "2 in the latent walk"
            )
        super().__init__(every_n_batches)
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.seed = seed

    def _can_draw(self, module: L.LightningModule) -> bool:
        return supports(module, DecodesLatents)

    def _draw(self, trainer: L.Trainer, module: Any) -> None:
        rows = module.examples(self.num_rows) if supports(module, Samples) else None
        raw = None if rows is None else [value for value in rows for _ in range(self.num_columns)]
        noise = Noise(self.seed, torch.arange(self.num_rows + 1), module.device)
        ends = noise.normal((self.num_rows + 1, module.latent_dim()))
        weights = [i / (self.num_columns - 1) for i in range(self.num_columns)]
        z = torch.stack([slerp(ends[:-1], ends[1:], weight) for weight in weights], dim=1)
        images = module.from_latents(z.flatten(0, 1), raw)
        names = None if rows is None else [short_name(value) for value in rows]
        publish(trainer, "latent_walk", make_grid(images, self.num_columns, row_labels=names))
