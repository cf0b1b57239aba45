"""The KL autoencoder of a perceptual and an adversarial loss: the first stage of latent diffusion."""

from __future__ import annotations

from trilemma.codecs.kl import KL
from trilemma.models.adversarial_stage import AdversarialStage
from trilemma.models.autoencoder_kl import AutoencoderKL
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.training.adversary import Adversary
from trilemma.training.reconstruction import ReconstructionLoss


class AutoencoderKLGAN(AdversarialStage, AutoencoderKL):
    """A KL autoencoder whose reconstructions a discriminator of patches judges.

    Source: Rombach et al. 2022, section 3.1 and appendix G.

    Args:
        codec: The codec that is trained.
        reconstruction: The distance of a reconstruction, usually with a perceptual part.
        kl_weight: See `AutoencoderKL`.
        adversary: See `AdversarialStage`.
        optimizer: See `Adversarial`, also for the rest.
        discriminator_optimizer: See there.
        scheduler: See there.
        gradient_clip_val: See there.
        discriminator_gradient_clip_val: See there.
        accumulate_grad_batches: See there.

    Raises:
        UserError: If the parts do not fit each other, or a number is out of range.
    """

    def __init__(
        self,
        *,
        codec: KL,
        reconstruction: ReconstructionLoss,
        kl_weight: float,
        adversary: Adversary,
        optimizer: OptimizerFactory | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        gradient_clip_val: float | None = None,
        discriminator_gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__(
            codec=codec,
            reconstruction=reconstruction,
            kl_weight=kl_weight,
            adversary=adversary,
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
            scheduler=scheduler,
            gradient_clip_val=gradient_clip_val,
            discriminator_gradient_clip_val=discriminator_gradient_clip_val,
            accumulate_grad_batches=accumulate_grad_batches,
        )
