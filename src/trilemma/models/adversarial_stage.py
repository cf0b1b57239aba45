"""A first stage whose reconstructions a discriminator judges."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.adversarial import Adversarial
from trilemma.models.base import Loss
from trilemma.models.first_stage import FirstStage
from trilemma.networks.image_coder import HasLastLayer
from trilemma.training.adversary import Adversary


class AdversarialStage(Adversarial, FirstStage):
    """Adds an adversarial loss to what a first stage minimises; a subclass names that first stage as its next base.

    Source: Esser et al. 2021 (VQGAN), equations 5 to 7.

    Args:
        adversary: The discriminator, and when and how much it counts. Batches are counted whole, whatever an update takes.
        parts: See `Adversarial` and the first stage.

    Raises:
        UserError: If the discriminator reads no images of that size, or the decoder has no last layer.
    """

    discriminator_modules = ("adversary",)

    def __init__(self, *, adversary: Adversary, **parts: Any) -> None:
        super().__init__(**parts)
        self.adversary = adversary
        adversary.discriminator.check_size(*self.codec.image_shape[1:])
        decoder = self.codec.decoder
        if not isinstance(decoder, HasLastLayer):
            raise UserError(
                f"the adaptive weight needs the decoder's last layer, and a {type(decoder).__name__} names none: give it `last_layer`"
            )

    def check_training(self, *, num_updates: int, num_images: int | None) -> None:
        """Refuse a discriminator that would never act."""
        super().check_training(num_updates=num_updates, num_images=num_images)
        self.adversary.check_length(num_updates * self.accumulate_grad_batches)

    @property
    def planned_updates(self) -> tuple[int, ...]:
        """See `Adversarial`: before the discriminator acts, and after."""
        return (0, -(-self.adversary.start // self.accumulate_grad_batches))

    @property
    def _trained_batches(self) -> int:
        """Batches before the current update."""
        return self.num_updates * self.accumulate_grad_batches

    def discriminator_loss(self, batch: Batch) -> Loss | None:
        """Compute the discriminator's loss on images and their reconstructions; None before it is warmed up."""
        if not self.adversary.learns(self._trained_batches):
            return None
        with torch.no_grad():
            reconstruction = self.redrawn(batch["image"])
        total, real, fake = self.adversary.discriminator_loss(batch["image"], reconstruction)
        return Loss(total, {}, {"real_score": real.detach(), "fake_score": fake.detach()})

    def generator_loss(self, batch: Batch) -> Loss:
        """Compute reconstruction error, regulariser and, from its start on, the adversarial loss."""
        images = batch["image"]
        terms = self.terms(images)
        total, named = terms.error + terms.regulariser, {"reconstruction": terms.error, **terms.named}
        if self.adversary.acts(self._trained_batches):
            adversarial, parts = self.adversary.generator_loss(
                images,
                terms.reconstruction,
                error=terms.error,
                last_layer=cast(HasLastLayer, self.codec.decoder).last_layer,
                average=self._over_processes,
            )
            total, named = total + adversarial, named | parts
        return Loss(total, named)

    def _over_processes(self, x: Tensor) -> Tensor:
        """Average over the processes of the run: the weight is that of the whole batch."""
        if self._trainer is None or self._trainer.world_size == 1:
            return x
        mean = self._trainer.strategy.reduce(x, reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean
