"""VQ-VAE: the discrete first stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.codecs.usage import CodebookUsage
from trilemma.codecs.vq import VQ
from trilemma.data.batch import Batch
from trilemma.data.images import to_float, to_uint8
from trilemma.models.base import Family, Loss, OptimizerFactory, SchedulerFactory


class VQVAE(Family):
    """Trains a `VQ` codec: reconstruction + commitment loss; a codebook follows by moving averages.

    Source: van den Oord et al. 2017, eq. 3; EMA codebook of its appendix A.1.

    Args:
        codec: The codec that is trained.
        optimizer: See `Family`.
        scheduler: See `Family`.
    """

    monitor = ("val/psnr", "max")

    def __init__(
        self,
        *,
        codec: VQ,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.codec = codec
        self.usage = CodebookUsage(codec.num_classes)

    def check_training(self, *, num_updates: int, num_images: int | None) -> None:
        """Refuse a codebook that the tokens of the training set cannot fill."""
        self.codec.check_codebook(num_images)

    def loss(self, batch: Batch) -> Loss:
        """Compute the mean squared error in [-1, 1] units plus the weighted commitment loss."""
        output = self.codec(batch["image"])
        reconstruction = F.mse_loss(output.reconstruction, batch["image"])
        return Loss(
            reconstruction + output.commitment,
            {"reconstruction": reconstruction, "commitment": output.commitment},
        )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate squared error after rounding to uint8, and the codebook's use over the whole set."""
        images = batch["image"]
        code = self.codec.encode(images)
        rounded = to_float(to_uint8(self.codec.decode(code)))
        self.usage.update(code)
        error = F.mse_loss(rounded, images) / 4
        self.log("val/mse", error, batch_size=len(images), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the PSNR of the pooled error (data range 1) and codebook usage."""
        mse = self.trainer.callback_metrics["val/mse"]
        self.log("val/psnr", -10 * torch.log10(mse), prog_bar=True, sync_dist=True)  # equal in all processes
        self.log_dict({f"val/codebook_{name}": x for name, x in self.usage.compute().items()}, sync_dist=True)
        self.usage.reset()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images [B, C, H, W]."""
        was_training = self.training
        self.eval()
        try:
            return self.codec.decode(self.codec.encode(images))
        finally:
            self.train(was_training)
