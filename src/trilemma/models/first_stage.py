"""What first stages share: reconstructions, and how they are scored."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.data.batch import Batch
from trilemma.data.images import to_float, to_uint8
from trilemma.models.base import Family, Loss
from trilemma.training.reconstruction import ReconstructionLoss


class StageTerms(NamedTuple):
    """What a first stage minimises of a batch.

    Attributes:
        reconstruction: Images [B, C, H, W], not clipped.
        error: Mean reconstruction error a subpixel, a scalar.
        regulariser: What keeps codes in bounds, weighted; a scalar of the same unit.
        named: What is logged beside the error.
    """

    reconstruction: Tensor
    error: Tensor
    regulariser: Tensor
    named: dict[str, Tensor]


class FirstStage(Family):
    """Trains a codec to give images back."""

    monitor = ("val/psnr", "max")
    codec: Codec
    reconstruction: ReconstructionLoss

    def check_training(self, *, num_updates: int, num_images: int | None) -> None:
        """Refuse a reconstruction loss that lacks a file; a plan, which has no weights, needs none."""
        super().check_training(num_updates=num_updates, num_images=num_images)
        if not next(self.parameters()).is_meta:
            self.reconstruction.check(self.codec.image_shape[0])

    @abstractmethod
    def terms(self, images: Tensor) -> StageTerms:
        """Reconstruct images [B, C, H, W] and compute what is minimised; a codebook that moves by itself moves."""

    @abstractmethod
    def redrawn(self, images: Tensor) -> Tensor:
        """Reconstruct images [B, C, H, W] as training does, not clipped, without changing state."""

    def loss(self, batch: Batch) -> Loss:
        """Compute reconstruction error a subpixel and regulariser."""
        terms = self.terms(batch["image"])
        return Loss(terms.error + terms.regulariser, {"reconstruction": terms.error, **terms.named})

    def log_error(self, images: Tensor, reconstruction: Tensor) -> None:
        """Accumulate the squared error of reconstructions [B, C, H, W] after rounding to uint8 (data range 1)."""
        error = F.mse_loss(to_float(to_uint8(reconstruction)), images) / 4
        self.log("val/mse", error, batch_size=len(images), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the PSNR of the pooled error (data range 1)."""
        mse = self.trainer.callback_metrics["val/mse"]
        self.log("val/psnr", -10 * torch.log10(mse), prog_bar=True, sync_dist=True)  # equal in all processes

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W], to the mean of their latents where these are random, and decode them."""
        was_training = self.training
        self.eval()
        try:
            return self.codec.decode(self.codec.encode(images))
        finally:
            self.train(was_training)
