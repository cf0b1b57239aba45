"""The KL-regularised autoencoder: the continuous first stage."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.codecs.kl import KL
from trilemma.data.batch import Batch
from trilemma.data.images import to_float, to_uint8
from trilemma.errors import UserError
from trilemma.models.base import Family, Loss, OptimizerFactory, SchedulerFactory
from trilemma.processes.noise import NoiseSource
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.reconstruction import ReconstructionLoss


class AutoencoderKL(Family):
    """Trains a `KL` codec: reconstruction + `kl_weight` * KL(q(z|x) || N(0, I)).

    Both terms are sums over an image's dimensions, averaged over images, so `kl_weight` is the literature's (1e-6 in Rombach et
    al. 2022, with absolute error and a perceptual loss). With `SquaredError` the sum is 2 sigma^2 times the negative evidence
    lower bound of a decoder N(x; decode(z), sigma^2), up to a constant, where sigma^2 = kl_weight / 2. The whole is divided by the
    number of subpixels, which changes no minimum and scales gradients like those of a mean error.

    Sources: Kingma and Welling 2014, eq. 10; Rombach et al. 2022, section 3.1 and appendix G.

    Args:
        codec: The codec that is trained.
        reconstruction: The distance of a reconstruction.
        kl_weight: Weight of the KL; at 0 the encoder may learn to switch its noise off.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If `kl_weight` is negative.
    """

    monitor = ("val/psnr", "max")

    def __init__(
        self,
        *,
        codec: KL,
        reconstruction: ReconstructionLoss,
        kl_weight: float,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not kl_weight >= 0:
            raise UserError(f"model.kl_weight={kl_weight} must be at least 0")
        self.codec = codec
        self.reconstruction = reconstruction
        self.kl_weight = kl_weight

    def loss(self, batch: Batch) -> Loss:
        """Compute the weighted sum per subpixel; its terms are the reconstruction per subpixel and the KL in nats an image."""
        images = batch["image"]
        num_subpixels = images[0].numel()
        reconstruction, kl = self.terms(images, self.training_noise())
        total = (reconstruction + self.kl_weight * kl).mean() / num_subpixels
        return Loss(total, {"reconstruction": reconstruction.mean() / num_subpixels, "kl": kl.mean()})

    def terms(self, images: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Compute reconstruction and KL in nats of images [B, C, H, W], each [B], summed over dimensions, from one latent draw."""
        output = self.codec(images, noise)
        return self.reconstruction(output.reconstruction, images), output.posterior.kl().flatten(1).sum(1)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Accumulate the squared error of the mean latents' images after rounding to uint8, and the KL.

        Returns:
            The KL of each latent.
        """
        images = batch["image"]
        kl = self.codec.posterior(images).kl().flatten(1)
        rounded = to_float(to_uint8(self.reconstruct(images)))
        error = F.mse_loss(rounded, images) / 4
        self.log("val/mse", error, batch_size=len(images), sync_dist=True)
        self.log("val/kl", kl.sum(1).mean(), batch_size=len(images), sync_dist=True)
        return {"diagnostics": {"latent_kl": kl}}

    def on_validation_epoch_end(self) -> None:
        """Log the PSNR of the pooled error (data range 1)."""
        mse = self.trainer.callback_metrics["val/mse"]
        self.log("val/psnr", -10 * torch.log10(mse), prog_bar=True, sync_dist=True)  # equal in all processes

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] to the mean of their latents and decode it."""
        was_training = self.training
        self.eval()
        try:
            return self.codec.decode(self.codec.encode(images))
        finally:
            self.train(was_training)
