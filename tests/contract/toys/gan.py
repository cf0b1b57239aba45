"""The generative adversarial network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from trilemma.toys.dcgan_networks import DCDiscriminator, DCGenerator

from trilemma.codecs.base import Codec
from trilemma.conditions.base import ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.adversarial import Adversarial
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.generator import ImageGenerator
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import OnStep, Sampler
from trilemma.samplers.guidance import Guidance


class GAN(Adversarial, ImageGenerator):
    """A generator against a discriminator, with the non-saturating loss (Goodfellow et al. 2014).

    Args:
        codec: The pixels.
        network: The generator.
        discriminator: Its opponent.
        condition: None: this one is unconditional.
        guidance: Default guidance.
        optimizer: See `Adversarial`, also for the rest.
        scheduler: See there.

    Raises:
        UserError: If the condition steers.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        network: DCGenerator,
        discriminator: DCDiscriminator,
        condition: ConditionEncoder,
        guidance: Guidance,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if condition.steers:
            raise UserError("model=toy_gan is unconditional: take condition=none")
        self.codec = codec.freeze()
        self.network = network
        self.discriminator = discriminator
        self.condition = condition
        self.guidance = guidance
        self.check_parts()

    def discriminator_loss(self, batch: Batch) -> Loss:
        """softplus(-D) on data and softplus(D) on samples."""
        noise = self.training_noise()
        x = self.codes(batch, noise)
        with torch.no_grad():
            drawn = self.sample_codes(noise, len(x))
        real, fake = self.discriminator(x), self.discriminator(drawn)
        total = F.softplus(-real).mean() + F.softplus(fake).mean()
        return Loss(total, {}, {"real_score": real.detach(), "fake_score": fake.detach()})

    def generator_loss(self, batch: Batch) -> Loss:
        """softplus(-D) on samples."""
        drawn = self.sample_codes(self.training_noise(), len(batch["index"]))
        return Loss(F.softplus(-self.discriminator(drawn)).mean())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log how much better held-out data look to the discriminator than samples."""
        noise = self.validation_noise(batch)
        x = self.codes(batch, noise)
        real, fake = self.discriminator(x), self.discriminator(self.sample_codes(noise, len(x)))
        gap = real.sigmoid().mean() - fake.sigmoid().mean()
        self.log("val/discriminator_gap", gap, batch_size=len(x), sync_dist=True)

    def sample_codes(
        self,
        noise: NoiseSource,
        num: int,
        raw: None = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `ImageGenerator`; [num, C, H, W]."""
        images: Tensor = self.network(noise.normal((num, self.network.latent_dim)).to(self.codec.scale))
        return images
