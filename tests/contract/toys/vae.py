"""The variational autoencoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.codecs.kl import Posterior
from trilemma.conditions.base import ConditionEncoder
from trilemma.data.batch import Batch
from trilemma.distributions.base import Distribution, OutputDistribution
from trilemma.errors import UserError
from trilemma.models.base import Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import Likelihood
from trilemma.models.generator import ImageGenerator
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import OnStep, Sampler
from trilemma.samplers.guidance import Guidance
from trilemma.training.diagnostics import Diagnostics


class VAE(ImageGenerator):
    """Learns p(x) = E[p(x|z)] over z ~ N(0, I) by the evidence lower bound (Kingma and Welling 2014, eq. 10).

    Args:
        codec: The pixels.
        encoder: Images to means and log-variances of the latents.
        decoder: Latents to the parameters of p(x|z).
        output: What the decoder's output says of images.
        condition: None: this one is unconditional.
        guidance: Default guidance.
        optimizer: See `Family`.
        scheduler: See `Family`.

    Raises:
        UserError: If the parts do not fit each other.
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
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        if condition.steers:
            raise UserError("model=toy_vae is unconditional: take condition=none")
        channels, height, width = codec.image_shape
        if encoder.out_channels != 2 * decoder.in_channels:
            raise UserError(
                f"model.encoder.out_channels={encoder.out_channels} must be twice model.decoder.in_channels={decoder.in_channels}"
            )
        if decoder.out_channels != (needed := output.num_parameters(channels)):
            raise UserError(
                f"model.decoder.out_channels={decoder.out_channels} must be {needed} for a {type(output).__name__}"
            )
        self.latent_shape = (decoder.in_channels, *encoder.code_size(height, width))
        if decoder.image_size(*self.latent_shape[1:]) != (height, width):
            raise UserError(f"the decoder does not give images of {height}x{width}")
        self.codec = codec.freeze()
        self.encoder = encoder
        self.decoder = decoder
        self.output = output
        self.condition = condition
        self.guidance = guidance
        self.check_parts()

    def loss(self, batch: Batch) -> Loss:
        """The negative evidence lower bound in nats per subpixel."""
        noise = self.training_noise()
        nats, kl = self._terms(self.codes(batch, noise), noise)
        num_dims = math.prod(self.codec.image_shape)
        return Loss((nats + kl.sum(1)).mean() / num_dims, {"reconstruction": nats.mean(), "kl": kl.sum(1).mean()})

    def _terms(self, x: Tensor, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """-log p(x|z) of one z of each image, [B], and the KL of each latent, [B, d], in nats."""
        posterior = self._posterior(x)
        nats = -self._decoded(posterior.sample(noise)).log_prob(x).flatten(1).sum(1)
        return nats, posterior.kl().flatten(1)

    def _posterior(self, x: Tensor) -> Posterior:
        mean, log_var = self.encoder(x).chunk(2, 1)
        return Posterior(mean, log_var)

    def _decoded(self, z: Tensor) -> Distribution:
        return self.output(self.decoder(z))

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Diagnostics]:
        """Log the bound in bits a dimension; returns the KL of each latent."""
        noise = self.validation_noise(batch)
        x = self.codes(batch, noise)
        nats, kl = self._terms(x, noise)
        bits = (nats + kl.sum(1)).mean() / (x[0].numel() * math.log(2))
        self.log("val/bits_per_dim", bits, batch_size=len(x), sync_dist=True, prog_bar=True)
        return {"diagnostics": {"latent_kl": kl}}

    @torch.no_grad()
    def score_likelihood(self, batch: Batch, *, seed: int = 0) -> Likelihood:
        """The bound by one z an image."""
        noise = self.validation_noise(batch, seed)
        x = self.codes(batch, noise)
        nats, kl = self._terms(x, noise)
        return Likelihood(nats + kl.sum(1), "bound", x[0].numel(), "subpixel")

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
        """See `ImageGenerator`; means of p(x|z), [num, C, H, W]."""
        return self._decoded(noise.normal((num, *self.latent_shape)).to(self.codec.scale)).mean

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Mean of p(x|z) at the mean z of images [B, C, H, W]."""
        return self.decode(self._decoded(self._posterior(self.codec.encode(images)).mean).mean)
