"""The variational autoencoder, with the evidence lower bound or the importance-weighted one.

Shapes: B images, K importance samples, latents [B, d, h, w] (a vector where h = w = 1).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from trilemma.codecs.base import Codec
from trilemma.codecs.kl import Posterior
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.distributions.base import Distribution, OutputDistribution, at_least_float32
from trilemma.distributions.bernoulli import BernoulliOutput
from trilemma.distributions.normal import Normal, NormalOutput
from trilemma.errors import UserError
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import EncodesLatents, Likelihood, Reconstructs
from trilemma.models.generator import ImageGenerator
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import OnStep, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.diagnostics import Diagnostics

_MIN_LOG_VAR, _MAX_LOG_VAR = -30.0, 20.0  # beyond, exp overflows in half precision
_SAMPLES_AT_A_TIME = 50  # of an estimate: fixed, since each part is one draw of the noise


class VAE(ImageGenerator):
    """Learns p(x|c) = E[p(x|z, c)] over z ~ N(0, I) with an approximate posterior q(z|x, c); c is a label, or nothing.

    With K = 1 the loss is -log p(x|z) + beta KL(q(z|x) || p(z)), the KL in closed form (Kingma and Welling 2014, eq. 10; beta: Higgins
    et al. 2017, eq. 4). A mean KL of a latent below `free_bits` counts as that (Kingma et al. 2016, eq. 15). With K > 1 it is
    -log 1/K sum_k w_k, w_k = p(x|z_k) p(z_k) / q(z_k|x) (IWAE; Burda et al. 2016, eq. 8).

    Args:
        codec: The pixels.
        encoder: Images to means and log-variances of the latents.
        decoder: Latents to features of every pixel, which a 1 x 1 convolution turns into the parameters of p(x|z).
        output: What those parameters say of images.
        condition: Embeds labels that encoder and decoder read; none for an unconditional model.
        guidance: Default guidance: none.
        num_importance_samples: K of the training objective.
        beta: Weight of the KL.
        kl_warmup: Batches over which that weight rises linearly from 0 (Bowman et al. 2016, section 3.1; Sonderby et al. 2016).
        free_bits: lambda, in nats a latent in spite of its name.
        num_likelihood_samples: Importance samples an image of the estimate of log p(x).
        draw_pixels: Whether samples are drawn from p(x|z), or are its means.
        num_levels: Values that a subpixel of the data takes: 2 where they are binarised.
        condition_dropout: Share of training examples whose condition is replaced by the learned null.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the parts do not fit each other or the data, or a setting is out of its range.
    """

    monitor = ("val/bits_per_dim", "min")

    def __init__(
        self,
        *,
        codec: Codec,
        encoder: ImageEncoder,
        decoder: ImageDecoder,
        output: OutputDistribution,
        condition: ConditionEncoder,
        guidance: Guidance,
        num_importance_samples: int = 1,
        beta: float = 1.0,
        kl_warmup: int = 0,
        free_bits: float = 0.0,
        num_likelihood_samples: int = 500,
        draw_pixels: bool = False,
        num_levels: int = 256,
        condition_dropout: float = 0.1,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if codec.num_classes is not None or any(True for _ in codec.parameters()):
            raise UserError(
                "a VAE learns images themselves: take codec=pixels (model=vqvae and model=autoencoder_kl are first stages)"
            )
        self.codec = codec.freeze()
        self.encoder = encoder
        self.decoder = decoder
        self.output = output
        self.condition = condition
        self.guidance = guidance
        self.num_importance_samples = num_importance_samples
        self.beta = beta
        self.kl_warmup = kl_warmup
        self.free_bits = free_bits
        self.draw_pixels = draw_pixels
        self.condition_dropout = condition_dropout
        self._check_settings()
        self.set_likelihood_samples(num_likelihood_samples)
        self.latent_shape = self._check_networks(num_levels)
        self.head = nn.Conv2d(decoder.out_channels, output.num_parameters(codec.image_shape[0]), 1)
        if condition.steers and condition_dropout == 0:  # which have no condition
            self.unsupported = frozenset({Reconstructs, EncodesLatents})
        self.check_parts()

    def _check_settings(self) -> None:
        for name, value, least in (
            ("num_importance_samples", self.num_importance_samples, 1),
            ("beta", self.beta, 0),
            ("kl_warmup", self.kl_warmup, 0),
            ("free_bits", self.free_bits, 0),
        ):
            if not least <= value < math.inf:
                raise UserError(f"model.{name}={value}: must be a number of at least {least}")
        if not 0 <= self.condition_dropout <= 1:
            raise UserError(f"model.condition_dropout={self.condition_dropout}: must lie in [0, 1]")
        if self.num_importance_samples > 1 and (self.beta != 1 or self.free_bits > 0):
            raise UserError(
                f"model.num_importance_samples={self.num_importance_samples}: the importance-weighted bound has no KL term that "
                f"beta={self.beta:g} or free_bits={self.free_bits:g} could change: leave them out, or take one sample"
            )

    def _check_networks(self, num_levels: int) -> tuple[int, int, int]:
        channels, height, width = self.codec.image_shape
        encoder, decoder = self.encoder, self.decoder
        if isinstance(self.output, BernoulliOutput) and num_levels != 2:
            raise UserError(
                f"a Bernoulli likelihood is of two-valued images, and these have {num_levels} levels: take data.binarize=dynamic (or "
                "threshold), or model/output=discretised_logistic"
            )
        if encoder.in_channels != channels:
            raise UserError(f"model.encoder reads {encoder.in_channels} channels, and the images have {channels}")
        if encoder.out_channels != 2 * decoder.in_channels:
            raise UserError(
                f"model.encoder.out_channels={encoder.out_channels} must be twice model.decoder.in_channels={decoder.in_channels}: means "
                "and log-variances"
            )
        grid = encoder.code_size(height, width)
        if decoder.image_size(*grid) != (height, width):
            raise UserError(
                f"model.decoder does not make images of {height}x{width} from the encoder's {grid[0]}x{grid[1]} latents"
            )
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if self.condition.steers != (getattr(part, "condition_dim", None) is not None):
                raise UserError(
                    f"condition {type(self.condition).__name__} does not go with model.{name}.condition_dim="
                    f"{getattr(part, 'condition_dim', None)}: both networks read a condition exactly where there is one"
                )
        return decoder.in_channels, *grid

    def loss(self, batch: Batch) -> Loss:
        """Compute the negative bound in nats per subpixel; its terms are in nats an image."""
        noise = self.training_noise()
        x = self.codes(batch, noise)
        drop = noise.uniform((len(x),)) < self.condition_dropout if self.condition.steers else None
        condition = self.condition(self.condition.raw_from(batch), num=len(x), drop=drop)
        posterior, warmth = self._posterior(x, condition), self._warmth()
        kl = posterior.kl().flatten(1)
        terms = {"kl": kl.sum(1).mean()}
        if self.num_importance_samples > 1:
            log_w = self._log_weights(x, posterior, condition, self.num_importance_samples, noise, warmth)
            total = -_log_mean(log_w).mean()
        else:
            terms["reconstruction"] = -self._log_likelihood(x, posterior.sample(noise), condition).mean()
            total = terms["reconstruction"] + self.beta * warmth * self._free(kl)
        return Loss(total / x[0].numel(), {"nats": total, **terms})

    def _free(self, kl: Tensor) -> Tensor:
        """Sum max(lambda, mean KL) over latents, of KL [B, d]; the mean is that of the whole batch, over processes."""
        means = kl.mean(0)
        if self.free_bits == 0:
            return means.sum()
        whole = self.over_processes({"kl": means.detach()})["kl"]
        return torch.where(whole > self.free_bits, means, self.free_bits).sum()

    def _warmth(self) -> float:
        """The share of the weight of the KL that counts by now; all of it outside a trainer."""
        if self._trainer is None or not self._trainer.training or self.kl_warmup == 0:
            return 1.0
        return min(1.0, self._trainer.fit_loop.total_batch_idx / self.kl_warmup)

    def _posterior(self, x: Tensor, condition: Condition) -> Posterior:
        mean, log_var = at_least_float32(self.encoder(x, *self._given(condition))).chunk(2, 1)
        return Posterior(mean, log_var.clamp(_MIN_LOG_VAR, _MAX_LOG_VAR))

    def _decoded(self, z: Tensor, condition: Condition, num: int = 1) -> Distribution:
        """Compute p(x|z) of latents [B num, d, h, w], those of an image one after another."""
        given = (part.repeat_interleave(num, 0) for part in self._given(condition))
        return self.output(self.head(self.decoder(z.to(self.head.weight), *given)))

    def _given(self, condition: Condition) -> tuple[Tensor, ...]:
        return () if condition.pooled is None else (condition.pooled,)

    def _log_likelihood(self, x: Tensor, z: Tensor, condition: Condition, num: int = 1) -> Tensor:
        """Compute log p(x|z) in nats, [B num]."""
        log_prob = self._decoded(z, condition, num).log_prob(x.repeat_interleave(num, 0) if num > 1 else x)
        return log_prob.flatten(1).sum(1)

    def _log_weights(
        self, x: Tensor, posterior: Posterior, condition: Condition, num: int, noise: NoiseSource, warmth: float = 1.0
    ) -> Tensor:
        """Compute log w = log p(x|z) + log p(z) - log q(z|x) of `num` draws of z an image, [B, num]."""
        mean, log_std = posterior.mean[:, None], 0.5 * posterior.log_var[:, None]
        q = Normal(mean, log_std)
        eps = noise.normal((len(x), num, *self.latent_shape)).to(mean)
        z = mean + log_std.exp() * eps
        prior = Normal(torch.zeros_like(z), torch.zeros_like(z))
        ratio = (prior.log_prob(z) - q.log_prob(z)).flatten(2).sum(2)
        return self._log_likelihood(x, z.flatten(0, 1), condition, num).view(len(x), num) + warmth * ratio

    def _scored(self, batch: Batch, seed: int) -> tuple[Tensor, Posterior, Condition, NoiseSource]:
        noise = self.validation_noise(batch, seed)
        x = self.codes(batch, noise)
        condition = self.condition(self.condition.raw_from(batch), num=len(x))
        return x, self._posterior(x, condition), condition, noise

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Log the bound that is trained, by K samples an image, in nats and in bits a dimension; returns the KL of each latent."""
        x, posterior, condition, noise = self._scored(batch, 0)
        kl = posterior.kl().flatten(1)
        if self.num_importance_samples == 1:
            nats = kl.sum(1) - self._log_likelihood(x, posterior.sample(noise), condition)
        else:
            nats = -_log_mean(self._log_weights(x, posterior, condition, self.num_importance_samples, noise))
        mean = nats.mean()
        self.log("val/nats", mean, batch_size=len(x), sync_dist=True)
        self.log(
            "val/bits_per_dim", mean / (x[0].numel() * math.log(2)), batch_size=len(x), sync_dist=True, prog_bar=True
        )
        self.log("val/kl", kl.sum(1).mean(), batch_size=len(x), sync_dist=True)
        return {"diagnostics": {"latent_kl": kl}}

    def set_likelihood_samples(self, num: int) -> None:
        """See `EstimatesLikelihood`."""
        if num < 1:
            raise UserError(f"num_likelihood_samples={num}: take at least one importance sample an image")
        self.num_likelihood_samples = num

    @torch.no_grad()
    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """Estimate -log p(x|c) in nats an image by importance sampling; its expectation lies above the true value.

        With a single sample it is the evidence lower bound. A normal p(x|z) is a density, whose nats are no levels' nats.
        """
        x, posterior, condition, noise = self._scored(batch, seed)
        total, num = x.new_full((len(x),), -torch.inf, dtype=torch.float64), self.num_likelihood_samples
        for start in range(0, num, _SAMPLES_AT_A_TIME):
            part = min(_SAMPLES_AT_A_TIME, num - start)
            log_w = self._log_weights(x, posterior, condition, part, noise)
            total = torch.logaddexp(total, log_w.double().logsumexp(1))
        return Likelihood(
            nats=math.log(num) - total,
            kind="bound" if num == 1 else "estimate",
            num_dims=x[0].numel(),
            unit="subpixel density" if isinstance(self.output, NormalOutput) else "subpixel",
            num_samples=num,
        )

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
        """See `ImageGenerator`; draws from p(x|z), or its means, [num, C, H, W]."""
        distribution = self._decoded(noise.normal((num, *self.latent_shape)), self.condition(raw, num=num))
        return distribution.sample(noise) if self.draw_pixels else distribution.mean

    def latent_dim(self) -> int:
        """See `DecodesLatents`."""
        return math.prod(self.latent_shape)

    @torch.no_grad()
    def from_latents(self, z: Tensor, raw: Any = None) -> Tensor:
        """See `DecodesLatents`; means of p(x|z)."""
        z = z.to(self.device).view(-1, *self.latent_shape)
        return self.decode(self._decoded(z, self.condition(raw, num=len(z))).mean)

    @torch.no_grad()
    def to_latents(self, images: Tensor, raw: Any = None) -> Tensor:
        """See `EncodesLatents`."""
        x = self.codec.encode(images.to(self.device))
        return self._posterior(x, self.condition(raw, num=len(x))).mean.flatten(1)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Compute the mean of p(x|z) at the mean z of images [B, C, H, W]; of a conditional model under the null condition."""
        return self.from_latents(self.to_latents(images))


def _log_mean(log_w: Tensor) -> Tensor:
    """Compute log 1/K sum_k w_k of log-weights [B, K]."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])
