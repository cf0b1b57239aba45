"""Discrete diffusion: any categorical process over any tokens (VQ-Diffusion, D3PM, multinomial diffusion, absorbing diffusion).

Shapes: B images, L tokens, K classes, T timesteps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trilemma.capabilities import supports
from trilemma.codecs.base import Codec, flatten, unflatten
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import Likelihood
from trilemma.models.diffusion import Diffusion
from trilemma.processes.categorical.base import CategoricalProcess, Weighting
from trilemma.processes.noise import Noise, NoiseSource
from trilemma.samplers.base import Prediction
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.loss_weights import KnowsSNR, LossWeight
from trilemma.training.timesteps import GridTimesteps, TimestepSampler, stratified_timesteps


class DiscreteDiffusion(Diffusion):
    """Learns p(x0 | xt) on the tokens of a frozen codec, on a chain of T steps.

    The loss is the variational bound plus an auxiliary -log p(x0 | xt), both divided by the probability of the drawn timestep
    (Gu et al. 2022, eq. 9 to 12; the hybrid loss of Austin et al. 2021, eq. 5).

    Args:
        codec: Image <-> tokens; frozen here, and part of the checkpoint.
        process: The corruption.
        network: (tokens [B, L], t [B], pooled, context, context_mask) -> logits [B, L, K].
        condition: Embeds labels or text.
        sampler: Default way to draw samples.
        guidance: Default guidance.
        times: Which timesteps of the chain are trained, and its length T.
        weight: How much the bound's term counts at each of them.
        weighting: How p(x0 | xt) becomes p(xs | xt): "posterior" (VQ-Diffusion) or "joint" (D3PM, multinomial).
        auxiliary_weight: Weight of the auxiliary loss.
        adaptive_auxiliary: Weigh the auxiliary loss by 1 + (1 - t), more at low noise.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the codec gives no tokens, or other classes than the process; if the times are on no grid, or the weight asks for
            a signal-to-noise ratio that the process does not have.
    """

    process: CategoricalProcess
    process_kind = CategoricalProcess
    monitor = ("val/bits_per_token", "min")

    def __init__(
        self,
        *,
        codec: Codec,
        process: CategoricalProcess,
        network: nn.Module,
        condition: ConditionEncoder,
        sampler: DenoisingSampler,
        guidance: Guidance,
        times: TimestepSampler,
        weight: LossWeight,
        weighting: Weighting = "posterior",
        auxiliary_weight: float = 1e-3,
        adaptive_auxiliary: bool = True,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if not isinstance(times, GridTimesteps):
            raise UserError("the bound is a sum over the steps of a chain: take model/times=importance or chain")
        if weight.on_bound(torch.zeros(1, dtype=torch.float64)) is not None and not supports(process, KnowsSNR):
            raise UserError(
                f"process {type(process).__name__} has no signal-to-noise ratio to weigh by: take model/weight=simple"
            )
        self.check_process_kind(type(process))
        if codec.num_classes is None:
            raise UserError(
                f"a categorical process needs tokens, and codec {type(codec).__name__} gives continuous values: take "
                "codec=pixels_256, codec=pixels_2 or codec=vq"
            )
        if codec.num_classes != process.num_classes:
            raise UserError(f"the codec has {codec.num_classes} classes and the process {process.num_classes}")
        self.codec = codec.freeze()
        self.process = process
        self.network = network
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.weighting = weighting
        self.auxiliary_weight = auxiliary_weight
        self.adaptive_auxiliary = adaptive_auxiliary
        self.condition_dropout = condition_dropout
        self.times = times
        self.weight = weight
        self.check_parts()

    @property
    def num_timesteps(self) -> int:
        """Length T of the chain."""
        return self.times.num_steps

    def loss(self, batch: Batch) -> Loss:
        """Compute the variational bound + auxiliary loss, in nats per token."""
        x0, noise = self.tokens(batch), self.training_noise()
        t, weight = self.times.sample(len(x0), noise, self.process)
        i = self.times.index(t)
        drop = noise.uniform((len(x0),)) < self.condition_dropout
        condition = self.condition(self.condition.raw_from(batch), num=len(x0), drop=drop)
        kl, cross_entropy = self._terms(x0, i, condition, noise)
        self.times.update(t, kl)  # not weighted, so that its mean stays the bound's term
        adaptive = 2 - i / self.num_timesteps if self.adaptive_auxiliary else 1
        auxiliary = self.num_timesteps * self.auxiliary_weight * (weight * adaptive * cross_entropy).mean()
        bound = self.num_timesteps * (weight * kl).mean()
        factor = self._bound_weight(t)
        weighted = bound if factor is None else self.num_timesteps * (weight * factor.to(kl) * kl).mean()
        return Loss(
            weighted + auxiliary, {"bound": bound, "auxiliary": auxiliary, "cross_entropy": cross_entropy.mean()}
        )

    def _bound_weight(self, t: Tensor) -> Tensor | None:
        """Compute the weights of the bound's terms at times t [B], float64 [B]; None where all are 1."""
        if not supports(self.process, KnowsSNR):
            return None
        return self.weight.on_bound(self.process.log_snr(t))

    def _terms(self, x0: Tensor, i: Tensor, condition: Condition, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Compute the KL of step i and -log p(x0 | xt), each the mean over tokens, [B]."""
        t, s = i / self.num_timesteps, (i - 1) / self.num_timesteps
        xt = self.process.sample(x0, t, noise)
        logits = self._logits(xt, t, condition)
        kl, cross_entropy = self.process.bound_terms(logits, x0, xt, s, t, self.weighting)
        return kl.mean(1), cross_entropy.mean(1)

    def _logits(self, xt: Tensor, t: Tensor, condition: Condition) -> Tensor:
        logits: Tensor = self.network(xt, t, condition.pooled, condition.tokens, condition.mask)
        return logits

    def tokens(self, batch: Batch) -> Tensor:
        """Get the batch's tokens, int64 [B, L]: the cached ones, else encoded now."""
        if "code" in batch:
            return batch["code"]
        with torch.no_grad():
            return flatten(self.codec.encode(batch["image"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Log the bound in bits per token at stratified times, so that the images of the set cover all of 1..T.

        Returns:
            The times and the bound's term at each, in bits per token.
        """
        x0 = self.tokens(batch)
        noise = Noise(0, batch["index"], self.device)
        condition = self.condition(self.condition.raw_from(batch), num=len(x0))
        i = stratified_timesteps(batch, batch_idx, self.num_timesteps)
        kl, cross_entropy = self._terms(x0, i, condition, noise)
        bound = (self.num_timesteps * kl + self.process.prior_kl(x0).mean(1)) / math.log(2)
        self.log("val/bits_per_token", bound.mean(), batch_size=len(x0), sync_dist=True, prog_bar=True)
        self.log("val/cross_entropy", cross_entropy.mean(), batch_size=len(x0), sync_dist=True)
        return {"diagnostics": {"time": i / self.num_timesteps, "time_loss": self.num_timesteps * kl / math.log(2)}}

    @torch.no_grad()
    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """Compute the bound in nats per image of L tokens, summed over every timestep with one draw of xt each."""
        x0 = self.tokens(batch)
        noise = Noise(seed, batch["index"], self.device)
        condition = self.condition(self.condition.raw_from(batch), num=len(x0))
        nats = self.process.prior_kl(x0).sum(1)
        for i in range(1, self.num_timesteps + 1):
            kl, _ = self._terms(x0, torch.full((len(x0),), i, device=self.device), condition, noise)
            nats = nats + kl * x0.shape[1]
        return Likelihood(nats, "bound", x0.shape[1], "token")

    def denoise(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict log p(x0|xt) for samplers (see `Denoiser`)."""
        return Prediction(log_x0=self._logits(xt, t, condition), weighting=self.weighting)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """See `Diffusion`: states are sequences of L tokens."""
        return (self.codec.length,)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode tokens int64 [B, L] to images [B, C, H, W] in [-1, 1]."""
        return self.codec.decode(unflatten(codes, self.codec.code_shape))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images with the codec: the best that this model's samples can look like."""
        return self.codec.decode(self.codec.encode(images))
