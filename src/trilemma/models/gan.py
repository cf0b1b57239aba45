"""Generative adversarial network: DCGAN, R3GAN.

Shapes: B images, codes [B, c, h, w], latents z [B, d].
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.adversarial import Adversarial
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.generator import ImageGenerator
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import OnStep, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.adversarial import AdversarialLoss, squared_slope
from trilemma.training.augmentation import DifferentiableAugmentation
from trilemma.training.diagnostics import nearest_in_group


class Generator(Protocol):
    """A network from latents z [B, d], and a pooled condition or None, to [B, c, h, w]."""

    latent_dim: int

    def __call__(self, z: Tensor, pooled: Tensor | None, /) -> Tensor:
        """Generate [B, c, h, w]."""


class GAN(Adversarial, ImageGenerator):
    """A generator of images from one latent, against a discriminator.

    Source: Goodfellow et al. 2014; Radford et al. 2016 (DCGAN) and Huang et al. 2024 (R3GAN) for the presets.

    Args:
        codec: Image <-> continuous code; frozen here, and part of the checkpoint.
        network: The generator; its samples are made of z ~ N(0, 1).
        discriminator: Scores codes [B, c, h, w] and a pooled condition or None as logits [B].
        condition: Embeds labels or text for the generator.
        discriminator_condition: Embeds the same for the discriminator, which learns an embedding of its own.
        guidance: None is possible: images are drawn in a single call.
        objective: What both minimise.
        augment: What is done to whatever the discriminator is shown in training; None for nothing.
        squash_output: Whether a tanh squashes the generator's output into the codec's bound, where it has one.
        r1_weight: Weight gamma of the penalty gamma/2 |grad_x D(x)|^2 on data.
        r2_weight: The same on samples.
        penalty_interval: Number of updates from one penalty to the next; the weights are not multiplied by it.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Adversarial`, also for the rest.
        discriminator_optimizer: See there.
        scheduler: See there.
        gradient_clip_val: See there.
        discriminator_gradient_clip_val: See there.
        accumulate_grad_batches: See there.

    Raises:
        UserError: If the codec gives tokens, or a number is out of range.
    """

    discriminator_modules = ("discriminator", "discriminator_condition")

    def __init__(
        self,
        *,
        codec: Codec,
        network: Generator,
        discriminator: nn.Module,
        condition: ConditionEncoder,
        discriminator_condition: ConditionEncoder,
        guidance: Guidance,
        objective: AdversarialLoss,
        augment: DifferentiableAugmentation | None = None,
        squash_output: bool = True,
        r1_weight: float = 0.0,
        r2_weight: float = 0.0,
        penalty_interval: int = 1,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        discriminator_optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        gradient_clip_val: float | None = None,
        discriminator_gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__(
            optimizer=optimizer,
            discriminator_optimizer=discriminator_optimizer,
            scheduler=scheduler,
            gradient_clip_val=gradient_clip_val,
            discriminator_gradient_clip_val=discriminator_gradient_clip_val,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        if codec.num_classes is not None:
            raise UserError(f"a GAN needs continuous codes, and codec {type(codec).__name__} gives tokens: take pixels")
        if not (r1_weight >= 0.0 and r2_weight >= 0.0 and penalty_interval >= 1 and 0.0 <= condition_dropout <= 1.0):
            raise UserError(
                f"model.r1_weight={r1_weight} and model.r2_weight={r2_weight} must not be negative, "
                f"model.penalty_interval={penalty_interval} be at least 1 and model.condition_dropout={condition_dropout} "
                "lie in [0, 1]"
            )
        assert isinstance(network, nn.Module)
        self.codec = codec.freeze()
        self.network: nn.Module = network
        self.discriminator = discriminator
        self.condition = condition
        self.discriminator_condition = discriminator_condition
        self.guidance = guidance
        self.objective = objective
        self.augment = augment
        self.squash_output = squash_output
        self.r1_weight = r1_weight
        self.r2_weight = r2_weight
        self.penalty_interval = penalty_interval
        self.condition_dropout = condition_dropout
        self._latent_dim = network.latent_dim
        self.check_parts()

    def discriminator_loss(self, batch: Batch) -> Loss:
        """Compute the objective on data and on samples, and every few updates the penalties R1 and R2."""
        noise = self.training_noise()
        x, condition, judged = self._given(batch, noise)
        with torch.no_grad():
            drawn = self._generated(noise, condition)
        due = self.num_updates % self.penalty_interval == 0
        penalties = {
            name: weight for name, weight in (("r1", self.r1_weight), ("r2", self.r2_weight)) if weight and due
        }
        x = x.detach().requires_grad_("r1" in penalties)
        drawn = drawn.detach().requires_grad_("r2" in penalties)
        real, fake = self._score(x, judged, noise), self._score(drawn, judged, noise)
        total, terms = self.objective.discriminator(real, fake), {}
        slopes = {"r1": (real, x), "r2": (fake, drawn)}
        for name, weight in penalties.items():
            terms[name] = 0.5 * weight * squared_slope(*slopes[name]).mean()
            total = total + terms[name]
        return Loss(
            total,
            terms,
            {
                "real_score": real.detach(),
                "fake_score": fake.detach(),
                "real_nearest": nearest_in_group(x.detach()),
                "fake_nearest": nearest_in_group(drawn.detach()),
            },
        )

    def generator_loss(self, batch: Batch) -> Loss:
        """Compute the objective on samples; data have a part in it where scores are compared in pairs."""
        noise = self.training_noise()
        x, condition, judged = self._given(batch, noise)
        fake = self._score(self._generated(noise, condition), judged, noise)
        with torch.no_grad():
            real = self._score(x, judged, noise) if self.objective.needs_real else None
        return Loss(self.objective.generator(real, fake))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the gap between D of data and of samples on held-out data, to compare with `train/discriminator_gap`."""
        noise = self.validation_noise(batch)
        x, raw = self.codes(batch, noise), self.condition.raw_from(batch)
        judged = self.discriminator_condition(raw, num=len(x))
        real, fake = (
            self._score(x, judged),
            self._score(self._generated(noise, self.condition(raw, num=len(x))), judged),
        )
        gap = real.sigmoid().mean() - fake.sigmoid().mean()
        self.log("val/discriminator_gap", gap, batch_size=len(x), sync_dist=True)

    def _given(self, batch: Batch, noise: NoiseSource) -> tuple[Tensor, Condition, Condition]:
        """Encode data [B, c, h, w], and their condition for either network, dropped for both at once."""
        x, raw = self.codes(batch, noise), self.condition.raw_from(batch)
        drop = noise.uniform((len(x),)) < self.condition_dropout
        condition, judged = (
            encoder(raw, num=len(x), drop=drop) for encoder in (self.condition, self.discriminator_condition)
        )
        return x, condition, judged

    def _generated(self, noise: NoiseSource, condition: Condition) -> Tensor:
        return self._codes_of(noise.normal((len(condition), self._latent_dim)), condition)

    def _codes_of(self, z: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.network(z.to(next(self.network.parameters()).dtype), condition.pooled)
        bound = self.codec.bound if self.squash_output else None
        return output if bound is None else bound * torch.tanh(output / bound)

    def _score(self, x: Tensor, condition: Condition, noise: NoiseSource | None = None) -> Tensor:
        """Compute logits [B] in float32 or better; what is given noise is augmented first."""
        if self.augment is not None and noise is not None:
            x = self.augment(x, noise)
        score: Tensor = self.discriminator(x, condition.pooled)
        return score if score.dtype.itemsize >= 4 else score.float()

    def sample_codes(
        self,
        noise: NoiseSource,
        num: int,
        raw: Any = None,
        *,
        sampler: Sampler | None = None,
        guidance: Guidance | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """See `ImageGenerator`; [num, c, h, w]."""
        return self._generated(noise, self.condition(raw, num=num))

    def latent_dim(self) -> int:
        """See `DecodesLatents`."""
        return self._latent_dim

    @torch.no_grad()
    def from_latents(self, z: Tensor, raw: Any = None) -> Tensor:
        """See `DecodesLatents`."""
        return self.decode(self._codes_of(z, self.condition(raw, num=len(z))))
