"""ImageBART: a short chain of uniform noise on tokens, each step reversed by an autoregressive transformer.

Shapes: B images, L tokens, K classes, T scales: x_0 are the data, x_T is all but noise.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.models.autoregressive import AutoregressiveModel
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import Likelihood
from trilemma.networks.transformer.causal import KeyValueCache
from trilemma.networks.transformer.encoder_decoder import EncoderDecoderTransformer
from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.base import OnStep, Prediction, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.diagnostics import Diagnostics
from trilemma.training.timesteps import GridTimesteps, stratified_timesteps


class ImageBARTState(NamedTuple):
    """What is kept between two positions of a scale.

    Attributes:
        condition: The condition.
        noisy: Tokens of the noisier scale, [B, L].
        scale: Its number, [B].
        cache: Keys and values so far.
    """

    condition: Condition
    noisy: Tensor
    scale: Tensor
    cache: KeyValueCache


class ImageBART(AutoregressiveModel):
    """Learns p(x_{i-1} | x_i, condition) of a chain of few scales, each a product over positions of p(x_{i-1}^l | x_{i-1}^{<l}, x_i).

    A step sees all of the scale before it, which a transformer on the tokens alone does not: context from below and from the right. One
    network serves all scales. With an alpha_bar of 1 - t the chain is the geometric one of the source, whose last scale is pure noise.

    The bound of a scale is the KL from q(x_{i-1} | x_i, x_0), position by position with the positions before it drawn from q: its mean over
    draws is the KL of whole sequences, with less variance than the log-ratio of one draw (the source's "soft" loss).

    Source: Esser et al. 2021, "ImageBART: bidirectional context with multinomial diffusion for autoregressive image synthesis", section 3.

    Args:
        codec: Image <-> tokens; frozen here, and part of the checkpoint.
        process: The corruption, without a mask.
        network: See `EncoderDecoderTransformer`.
        condition: Embeds labels.
        sampler: Default way to draw the positions of a scale.
        guidance: Default guidance.
        times: How often each scale is trained, and their number T.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If codec, process and network have different classes, the process has a mask, or the network other scales.
    """

    def __init__(
        self,
        *,
        codec: Codec,
        process: CategoricalProcess,
        network: EncoderDecoderTransformer,
        condition: ConditionEncoder,
        sampler: AutoregressiveSampler,
        guidance: Guidance,
        times: GridTimesteps,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        classes = {"codec": codec.num_classes, "process": process.num_classes, "network": network.num_classes}
        if len(set(classes.values())) > 1:
            raise UserError(f"the parts of an ImageBART have different numbers of classes: {classes}")
        if process.num_states != process.num_classes:
            raise UserError(
                "an ImageBART writes a token at every position of every scale, and a mask is none: take process=uniform"
            )
        if times.num_steps != network.num_scales:
            raise UserError(
                f"model.times.num_steps={times.num_steps} and network.num_scales={network.num_scales} are the same number of scales"
            )
        self.codec = codec.freeze()
        self.process = process
        self.network = network
        self.condition = condition
        self.sampler = sampler
        self.guidance = guidance
        self.times = times
        self.condition_dropout = condition_dropout
        self.check_parts()

    @property
    def num_scales(self) -> int:
        """Number of scales T."""
        return self.times.num_steps

    def distribution(self, x: Tensor, condition: Condition, context: Tensor | None = None) -> Categorical:
        """See `AutoregressiveModel`; the context is that of `start`, and x the less noisy tokens, int64 [B, L]."""
        scale, noisy = _scale_and_tokens(context)
        return Categorical(self.network(x, noisy, scale, condition.pooled))

    def start(self, condition: Condition, context: Tensor | None = None) -> ImageBARTState:
        """See `Autoregressive`; the context are the number of the noisier scale and its tokens, int64 [B, 1 + L]."""
        scale, noisy = _scale_and_tokens(context)
        return ImageBARTState(condition, noisy, scale, KeyValueCache())

    def step(self, token: Tensor | None, state: ImageBARTState) -> tuple[Categorical, ImageBARTState]:
        """See `Autoregressive`; tokens int64 [B]."""
        new = state.noisy[:, :0] if token is None else token[:, None]
        logits = self.network(new, state.noisy, state.scale, state.condition.pooled, cache=state.cache)
        return Categorical(logits[:, -1]), state

    def loss(self, batch: Batch) -> Loss:
        """Compute the variational bound in nats a token."""
        noise = self.training_noise()
        x0 = self.sequence(batch, noise)
        t, weight = self.times.sample(len(x0), noise, self.process)
        drop = noise.uniform((len(x0),)) < self.condition_dropout
        condition = self.condition(self.condition.raw_from(batch), num=len(x0), drop=drop)
        kl = self._kl(x0, self.times.index(t), condition, noise).mean(1)
        self.times.update(t, kl)
        return Loss(self.num_scales * (weight * kl).mean())

    def _kl(self, x0: Tensor, i: Tensor, condition: Condition, noise: NoiseSource) -> Tensor:
        """Compute KL(q(x_{i-1} | x_i, x_0) || p(x_{i-1} | x_{i-1}^{<l}, x_i)) at scales i [B], of each position, [B, L]."""
        s, t = (i - 1).double() / self.num_scales, i.double() / self.num_scales
        xt = self.process.sample(x0, t, noise)
        log_x0 = F.one_hot(x0, self.process.num_classes).double().log()
        log_q = self.process.posterior(log_x0, xt, s, t, "posterior")
        xs = noise.categorical(log_q, log=True)
        log_p = self.distribution(xs, condition, torch.cat([i[:, None], xt], 1)).logits.log_softmax(-1)
        q = log_q.exp()
        return (torch.xlogy(q, q).to(log_p) - q.to(log_p) * log_p).sum(-1)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Log the bound in bits a position, at scales that the images of the set take in turn."""
        noise = self.validation_noise(batch)
        x0 = self.sequence(batch, noise)
        condition = self.condition(self.condition.raw_from(batch), num=len(x0))
        i = stratified_timesteps(batch, batch_idx, self.num_scales)
        bits = self.num_scales * self._kl(x0, i, condition, noise).mean(1) / math.log(2)
        prior = self.process.prior_kl(x0).mean(1) / math.log(2)
        self.log("val/bits_per_dim", (bits + prior).mean(), batch_size=len(x0), sync_dist=True, prog_bar=True)
        return {"diagnostics": {"time": i / self.num_scales, "time_loss": bits}}

    @torch.no_grad()
    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """Compute the bound in nats an image, summed over the scales with one draw of each."""
        noise = self.validation_noise(batch, seed)
        x0 = self.sequence(batch, noise)
        condition = self.condition(self.condition.raw_from(batch), num=len(x0))
        nats = self.process.prior_kl(x0).sum(1)
        for scale in range(1, self.num_scales + 1):
            nats = nats + self._kl(x0, torch.full((len(x0),), scale, device=x0.device), condition, noise).sum(1)
        learned = any(True for _ in self.codec.parameters())
        return Likelihood(nats, "bound", x0.shape[1], "token" if learned else "subpixel")

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
        """Draw sequences [num, L], scale by scale; see `ImageGenerator`."""
        sampler = sampler or self.sampler
        self.check_sampler(sampler)
        assert isinstance(sampler, AutoregressiveSampler)
        condition, length = self.condition(raw, num=num), self.num_positions
        x = self.process.prior((num, length), noise)
        for scale in range(self.num_scales, 0, -1):

            def report(step: int, s: float, xs: Tensor, prediction: Prediction, scale: int = scale) -> None:
                if on_step is not None:
                    on_step(
                        step + (self.num_scales - scale) * length, (scale - 1 + s) / self.num_scales, xs, prediction
                    )

            x = sampler(
                self,
                length,
                condition=condition,
                guidance=guidance or self.guidance,
                noise=noise,
                on_step=None if on_step is None else report,
                context=torch.cat([torch.full_like(x[:, :1], scale), x], 1),
            )
        return x


def _scale_and_tokens(context: Tensor | None) -> tuple[Tensor, Tensor]:
    if context is None:
        raise ValueError("an ImageBART needs a context: the number of the noisier scale, and its tokens")
    return context[:, 0], context[:, 1:]
