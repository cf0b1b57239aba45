"""VQ-VAE: the discrete first stage."""

from __future__ import annotations

from torch import Tensor

from trilemma.codecs.usage import CodebookUsage
from trilemma.codecs.vq import VQ
from trilemma.data.batch import Batch
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.models.first_stage import FirstStage, StageTerms
from trilemma.training.reconstruction import ReconstructionLoss, SquaredError


class VQVAE(FirstStage):
    """Trains a `VQ` codec: reconstruction + commitment loss; a codebook follows by moving averages.

    Source: van den Oord et al. 2017, eq. 3; EMA codebook of its appendix A.1.

    Args:
        codec: The codec that is trained.
        reconstruction: The distance of a reconstruction; None takes `SquaredError`. It is divided by the number of subpixels.
        optimizer: See `Family`.
        scheduler: See `Family`.
    """

    codec: VQ

    def __init__(
        self,
        *,
        codec: VQ,
        reconstruction: ReconstructionLoss | None = None,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.codec = codec
        self.reconstruction = reconstruction or SquaredError()
        self.usage = CodebookUsage(codec.num_classes)

    def check_training(self, *, num_updates: int, num_images: int | None) -> None:
        """Refuse a codebook that the tokens of the training set cannot fill."""
        super().check_training(num_updates=num_updates, num_images=num_images)
        self.codec.check_codebook(num_images)

    def terms(self, images: Tensor) -> StageTerms:
        """Compute the error and the weighted commitment loss."""
        output = self.codec(images)
        error = self.reconstruction(output.reconstruction, images).mean() / images[0].numel()
        return StageTerms(output.reconstruction, error, output.commitment, {"commitment": output.commitment})

    def redrawn(self, images: Tensor) -> Tensor:
        """See `FirstStage`."""
        reconstruction: Tensor = self.codec.decoder(self.codec.embed(self.codec.encode(images)))
        return reconstruction

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate squared error, and the codebook's use over the whole set."""
        code = self.codec.encode(batch["image"])
        self.usage.update(code)
        self.log_error(batch["image"], self.codec.decode(code))

    def on_validation_epoch_end(self) -> None:
        """Log the PSNR and codebook usage."""
        super().on_validation_epoch_end()
        self.log_dict({f"val/codebook_{name}": x for name, x in self.usage.compute().items()}, sync_dist=True)
        self.usage.reset()
