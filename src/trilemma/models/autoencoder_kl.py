"""The KL-regularised autoencoder: the continuous first stage."""

from __future__ import annotations

from torch import Tensor

from trilemma.codecs.kl import KL
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.models.first_stage import FirstStage, StageTerms
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.reconstruction import ReconstructionLoss


class AutoencoderKL(FirstStage):
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

    codec: KL

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

    def terms(self, images: Tensor) -> StageTerms:
        """Compute the error and the weighted KL, both from one draw of the latents; the KL that is logged is in nats an image."""
        output = self.codec(images, self.training_noise())
        num_subpixels = images[0].numel()
        error = self.reconstruction(output.reconstruction, images).mean() / num_subpixels
        kl = output.posterior.kl().flatten(1).sum(1).mean()
        return StageTerms(output.reconstruction, error, self.kl_weight / num_subpixels * kl, {"kl": kl})

    def redrawn(self, images: Tensor) -> Tensor:
        """See `FirstStage`; from one draw of the latents."""
        reconstruction: Tensor = self.codec(images, self.training_noise()).reconstruction
        return reconstruction

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Accumulate the squared error of the mean latents' images, and the KL.

        Returns:
            The KL of each latent.
        """
        images = batch["image"]
        kl = self.codec.posterior(images).kl().flatten(1)
        self.log_error(images, self.reconstruct(images))
        self.log("val/kl", kl.sum(1).mean(), batch_size=len(images), sync_dist=True)
        return {"diagnostics": {"latent_kl": kl}}
