"""VQGAN: the discrete first stage of a perceptual and an adversarial loss."""

from __future__ import annotations

from trilemma.codecs.vq import VQ
from trilemma.models.adversarial_stage import AdversarialStage
from trilemma.models.base import OptimizerFactory, SchedulerFactory
from trilemma.models.vqvae import VQVAE
from trilemma.training.adversary import Adversary
from trilemma.training.reconstruction import ReconstructionLoss


class VQGAN(AdversarialStage, VQVAE):
    """A VQ-VAE whose reconstructions a discriminator of patches judges.

    Source: Esser et al. 2021, equations 5 to 7; the codebook follows by moving averages.

    Args:
        codec: The codec that is trained.
        reconstruction: The distance of a reconstruction, usually with a perceptual part.
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
        codec: VQ,
        reconstruction: ReconstructionLoss,
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
            adversary=adversary,
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
            scheduler=scheduler,
            gradient_clip_val=gradient_clip_val,
            discriminator_gradient_clip_val=discriminator_gradient_clip_val,
            accumulate_grad_batches=accumulate_grad_batches,
        )
