"""The adversarial term of a first stage: a discriminator of reconstructions, and when and how much it counts."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.patch_discriminator import PatchDiscriminator
from trilemma.training.adversarial import AdversarialLoss, adaptive_weight


class Adversary(nn.Module):
    """A discriminator that is trained for a while before the autoencoder minimises its loss too.

    A discriminator that begins to learn when it begins to act pulls at random, and wrecks reconstructions that were good.

    Source: Esser et al. 2021 (VQGAN), section 3.1 and equation 7; the warm-up is ours.

    Args:
        discriminator: Scores patches of images.
        objective: What both minimise.
        weight: Of the adversarial loss, on top of the adaptive one.
        adaptive: Whether the loss is scaled to the pull of the reconstruction error at the decoder's last layer.
        start: Batches before the adversarial loss acts on the autoencoder.
        num_warmup_batches: Batches before `start` in which the discriminator is trained already.

    Raises:
        UserError: If a number is negative, or the objective compares pairs.
    """

    def __init__(
        self,
        *,
        discriminator: PatchDiscriminator,
        objective: AdversarialLoss,
        weight: float = 0.8,
        adaptive: bool = True,
        start: int,
        num_warmup_batches: int = 0,
    ) -> None:
        super().__init__()
        if min(weight, start, num_warmup_batches) < 0:
            raise UserError(
                f"model.adversary: weight={weight}, start={start} and num_warmup_batches={num_warmup_batches} must not be negative"
            )
        self.discriminator = discriminator
        self.objective = objective
        self.weight = weight
        self.adaptive = adaptive
        self.start = start
        self.num_warmup_batches = num_warmup_batches

    def learns(self, num_batches: int) -> bool:
        """Check whether the discriminator is trained after so many batches."""
        return num_batches >= self.start - self.num_warmup_batches

    def acts(self, num_batches: int) -> bool:
        """Check whether its loss acts on the autoencoder after so many batches."""
        return num_batches >= self.start

    def check_length(self, num_batches: int) -> None:
        """Check that it acts in a run of so many batches.

        Raises:
            UserError: If it does not.
        """
        if self.start >= num_batches:
            raise UserError(
                f"model.adversary.start={self.start}: training ends after {num_batches} batches, before the discriminator acts; lower it, "
                "or raise trainer.max_steps"
            )

    def discriminator_loss(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the discriminator's loss, and the mean scores of images and of reconstructions [B, C, H, W], each [B]."""
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        return self.objective.discriminator(real, fake), real.flatten(1).mean(1), fake.flatten(1).mean(1)

    def generator_loss(
        self,
        images: Tensor,
        reconstruction: Tensor,
        *,
        error: Tensor,
        last_layer: Tensor,
        average: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted loss of reconstructions [B, C, H, W], and its parts by name.

        Args:
            images: [B, C, H, W].
            reconstruction: [B, C, H, W], not clipped.
            error: The reconstruction error, a scalar.
            last_layer: Weights of the decoder's last layer.
            average: See `adaptive_weight`.
        """
        real = self.discriminator(images).detach() if self.objective.needs_real else None
        loss = self.objective.generator(real, self.discriminator(reconstruction))
        scale = adaptive_weight(error, loss, last_layer, average) if self.adaptive else loss.new_ones(())
        return self.weight * scale * loss, {"adversarial": loss, "adaptive_weight": scale}
