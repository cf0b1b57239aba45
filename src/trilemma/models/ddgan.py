"""Denoising diffusion GAN: a chain of a few large steps, each drawn by a generator.

Shapes: B images, codes [B, c, h, w], times s and t [B], T steps.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.adversarial import Adversarial
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.diffusion import Diffusion
from trilemma.networks.discriminator import TimeDiscriminator
from trilemma.networks.unet.latent_unet import LatentUNet
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.noise import Noise, NoiseSource
from trilemma.samplers.base import Prediction, Sampler
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.adversarial import squared_slope

_ON_GRID = 1e-6


class _Step(NamedTuple):
    """One forward step (xs, xt) of data, with its times and both networks' conditions."""

    xs: Tensor
    xt: Tensor
    s: Tensor
    t: Tensor
    condition: Condition
    discriminator_condition: Condition


class DDGAN(Adversarial, Diffusion):
    """Learns p(xs | xt) for the T steps of a coarse grid: xs ~ q(xs | xt, x0) at x0 = G(xt, t, z).

    Where a step is large, p(xs | xt) has many modes and no Gaussian fits it; the latent z selects one of
    them. The discriminator sees pairs (xs, xt) and the time.

    Source: Xiao, Kreis and Vahdat 2022, "Tackling the generative learning trilemma with denoising diffusion GANs",
    equations 4 to 8; the penalty is that of Mescheder et al. 2018, equation 9.

    Args:
        codec: Image <-> continuous code; frozen here, and part of the checkpoint. Where it knows the codes' bound, the
            generator's output is squashed into it by a tanh.
        process: The corruption, on a continuous schedule.
        network: The generator.
        discriminator: Scores pairs (xs, xt) at time t.
        condition: Embeds labels or text for the generator.
        discriminator_condition: Embeds the same for the discriminator, which learns an embedding of its own.
        sampler: Default way to draw samples; its times must lie on the grid i/T.
        guidance: Default guidance.
        num_timesteps: Length T of the chain, 2 to 8 in the paper.
        r1_weight: Weight gamma of the penalty gamma/2 |grad_xs D(xs, xt, t)|^2 on data.
        r1_interval: Number of updates from one penalty to the next; the weight is not multiplied by it.
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

    process: GaussianProcess
    process_kind = GaussianProcess
    discriminator_modules = ("discriminator", "discriminator_condition")

    def __init__(
        self,
        *,
        codec: Codec,
        process: GaussianProcess,
        network: LatentUNet,
        discriminator: TimeDiscriminator,
        condition: ConditionEncoder,
        discriminator_condition: ConditionEncoder,
        sampler: DenoisingSampler,
        guidance: Guidance,
        num_timesteps: int = 4,
        r1_weight: float = 0.02,
        r1_interval: int = 15,
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
        self.check_process_kind(type(process))
        if codec.num_classes is not None:
            raise UserError(f"model=ddgan needs continuous codes, and codec {type(codec).__name__} gives tokens")
        if num_timesteps < 1 or r1_interval < 1 or r1_weight < 0.0:
            raise UserError(
                f"model.num_timesteps={num_timesteps} and model.r1_interval={r1_interval} must be at least 1, and "
                f"model.r1_weight={r1_weight} not negative"
            )
        self.codec = codec.freeze()
        self.process = process
        self.network: nn.Module = network
        self.discriminator = discriminator
        self.condition = condition
        self.discriminator_condition = discriminator_condition
        self.sampler = sampler
        self.guidance = guidance
        self.latent_dim = network.latent_dim
        self.num_timesteps = num_timesteps
        self.r1_weight = r1_weight
        self.r1_interval = r1_interval
        self.condition_dropout = condition_dropout
        self.check_parts()

    def discriminator_loss(self, batch: Batch) -> Loss:
        """Compute softplus(-D) on steps of data + softplus(D) on generated steps, every few updates with the R1 penalty."""
        noise = self.training_noise()
        step = self._forward_step(batch, noise, self.condition_dropout)
        penalised = self.r1_weight > 0.0 and self.num_updates % self.r1_interval == 0
        xs = step.xs.requires_grad_() if penalised else step.xs
        real = self._score(xs, step)
        with torch.no_grad():
            xs_fake = self._drawn(step, noise)
        fake = self._score(xs_fake, step)
        total, terms = F.softplus(-real).mean() + F.softplus(fake).mean(), {}
        if penalised:
            terms["r1"] = 0.5 * self.r1_weight * squared_slope(real, xs).mean()
            total = total + terms["r1"]
        return Loss(total, terms, {"real_score": real.detach(), "fake_score": fake.detach()})

    def generator_loss(self, batch: Batch) -> Loss:
        """Compute the non-saturating loss: softplus(-D) on generated steps."""
        noise = self.training_noise()
        step = self._forward_step(batch, noise, self.condition_dropout)
        return Loss(F.softplus(-self._score(self._drawn(step, noise), step)).mean())

    def _forward_step(self, batch: Batch, noise: NoiseSource, dropout: float) -> _Step:
        """Draw i from 1..T, xs ~ q(xs|x0) at s = (i - 1)/T, and xt ~ q(xt|xs) at t = i/T."""
        x0 = self.codes(batch, noise)
        i = torch.floor(noise.uniform((len(x0),), dtype=torch.float64) * self.num_timesteps) + 1.0
        s, t = (i - 1.0) / self.num_timesteps, i / self.num_timesteps
        xs = self.process.sample(x0, s, noise)
        scale, variance = self.process.transition(s, t)
        xt = broadcast_like(scale, xs) * xs + broadcast_like(variance.sqrt(), xs) * noise.normal(
            tuple(xs.shape), dtype=xs.dtype
        )
        drop = noise.uniform((len(x0),)) < dropout
        raw = self.condition.raw_from(batch)
        condition, judged = (
            encoder(raw, num=len(x0), drop=drop) for encoder in (self.condition, self.discriminator_condition)
        )
        return _Step(xs, xt, s, t, condition, judged)

    def _drawn(self, step: _Step, noise: NoiseSource) -> Tensor:
        """Draw xs from the generator, [B, c, h, w]."""
        x0 = self._generated(step.xt, step.t, step.condition, noise)
        mean, variance = self.process.posterior(x0, step.xt, step.s, step.t)
        return mean + variance.sqrt() * noise.normal(tuple(mean.shape), dtype=mean.dtype)

    def _generated(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Tensor:
        """Generate x0 from a latent drawn here, [B, c, h, w] in the dtype of xt."""
        dtype = next(self.network.parameters()).dtype
        z = noise.normal((len(xt), self.latent_dim)).to(dtype)
        output = self.network(xt.to(dtype), t.to(dtype), z, condition.pooled, condition.tokens, condition.mask).to(xt)
        bound = self.codec.bound
        return output if bound is None else bound * torch.tanh(output / bound)

    def _score(self, xs: Tensor, step: _Step) -> Tensor:
        """Compute the discriminator's logits, [B] in float32 or better."""
        score: Tensor = self.discriminator(xs, step.xt, step.t.to(xs.dtype), step.discriminator_condition.pooled)
        return score if score.dtype.itemsize >= 4 else score.float()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the gap between the logits of data and of samples on held-out data, to compare with `train/discriminator_gap`.

        An overfitted discriminator scores held-out images like samples.
        """
        noise = Noise(0, batch["index"], self.device)
        step = self._forward_step(batch, noise, 0.0)
        real, fake = self._score(step.xs, step), self._score(self._drawn(step, noise), step)
        gap = real.sigmoid().mean() - fake.sigmoid().mean()
        self.log("val/discriminator_gap", gap, batch_size=len(real), sync_dist=True)

    def check_sampler(self, sampler: Sampler | None) -> None:
        """See `ImageGenerator`; the network was trained at the times of its chain only."""
        super().check_sampler(sampler)
        assert isinstance(sampler, DenoisingSampler)
        self._check_times(torch.tensor(sampler.times(self.process)[:-1], dtype=torch.float64))

    def denoise(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 for samplers (see `Denoiser`); the latent is drawn from `noise`.

        Raises:
            UserError: If a time is not one of i/T.
        """
        self._check_times(t)
        return Prediction(x0=self._generated(xt, t, condition, noise), bound=self.codec.bound)

    def nearest_time(self, t: float) -> float:
        """See `Diffusion`; one of i/T, i = 1..T."""
        return max(1, round(t * self.num_timesteps)) / self.num_timesteps

    def _check_times(self, t: Tensor) -> None:
        i = t * self.num_timesteps
        off_grid = (i - i.round()).abs() > _ON_GRID
        if bool(off_grid.any()):
            raise UserError(
                f"this network knows the times i/{self.num_timesteps} alone, and the sampler asks for {float(t[off_grid][0]):.4g}: "
                f"take sampler=ddpm with sampler.num_steps={self.num_timesteps} and sampler.grid=trailing"
            )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as codes [B, c, h, w]."""
        return self.codec.encode(images)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes [B, c, h, w] of any float dtype to images [B, C, H, W] in [-1, 1]."""
        return self.codec.decode(codes.to(self.codec.scale.dtype))
