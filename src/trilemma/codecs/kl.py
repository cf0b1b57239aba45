"""Images as continuous latents with a Gaussian posterior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.codecs.base import image_shape_of
from trilemma.codecs.first_stage_grid import check_coders, code_grid
from trilemma.codecs.latents import LatentCodec
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder
from trilemma.processes.noise import NoiseSource

# Outside, exp would overflow in half precision or the deviation underflow; no trained posterior comes near.
_MIN_LOG_VAR, _MAX_LOG_VAR = -30.0, 20.0


@dataclass(frozen=True)
class Posterior:
    """q(z|x) = N(mean, exp(log_var)), independent in every latent.

    Attributes:
        mean: [B, c, h, w].
        log_var: [B, c, h, w].
    """

    mean: Tensor
    log_var: Tensor

    @property
    def deviation(self) -> Tensor:
        """Standard deviation [B, c, h, w]."""
        return (0.5 * self.log_var).exp()

    def sample(self, noise: NoiseSource) -> Tensor:
        """Draw z [B, c, h, w], differentiable in mean and log_var (Kingma and Welling 2014, section 2.4)."""
        return self.mean + self.deviation * noise.normal(tuple(self.mean.shape)).to(self.mean)

    def kl(self) -> Tensor:
        """Compute KL(q(z|x) || N(0, 1)) of every latent in nats, [B, c, h, w] (Kingma and Welling 2014, appendix B)."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var)


class KLOutput(NamedTuple):
    """What `KL.forward` gives a training step.

    Attributes:
        reconstruction: Images [B, C, H, W] of a drawn latent, not clipped.
        posterior: Of the latents, before `shift` and `scale`.
    """

    reconstruction: Tensor
    posterior: Posterior


class KL(LatentCodec):
    """The KL autoencoder's codec: an encoder to a Gaussian posterior, and a decoder.

    Sources: Kingma and Welling 2014; Rombach et al. 2022, section 3.1.

    The cache holds mean and deviation, so a prior sees a fresh draw each time, as if it had the images.

    Args:
        image_shape: (C, H, W).
        encoder: Images to mean and log-variance, 2c channels.
        decoder: Latents of c channels to images.

    Raises:
        UserError: If the encoder reads no images of that size (a convolutional one halves them), or a part codes no images.
        ValueError: If the parts do not fit each other.
    """

    def __init__(self, *, image_shape: Sequence[int], encoder: ImageEncoder, decoder: ImageDecoder) -> None:
        shape = image_shape_of(image_shape)
        check_coders(encoder, decoder)
        channels = decoder.in_channels
        grid = code_grid(shape, encoder, decoder, encoded_channels=2 * channels, decoded_channels=channels)
        super().__init__((channels, *grid))
        self.image_shape = shape
        self.encoder = encoder
        self.decoder = decoder

    def posterior(self, images: Tensor) -> Posterior:
        """Encode images [B, C, H, W] as a posterior, in single precision at least."""
        moments = self.encoder(images)
        mean, log_var = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(_MIN_LOG_VAR, _MAX_LOG_VAR))

    def forward(self, images: Tensor, noise: NoiseSource) -> KLOutput:
        """Reconstruct images [B, C, H, W] from a draw of their latents."""
        posterior = self.posterior(images)
        return KLOutput(self.decoder(posterior.sample(noise)), posterior)

    def decode(self, code: Tensor) -> Tensor:
        """Decode codes [B, c, h, w] to images [B, C, H, W] in [-1, 1]."""
        return self.decoder(self._latents(code)).clamp(-1.0, 1.0)

    def cache(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as mean and standard deviation of their latents, stacked to [B, 2c, h, w]."""
        posterior = self.posterior(images)
        return torch.cat([posterior.mean, posterior.deviation], dim=1)

    def moments(self, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Split [B, 2c, h, w] into mean and standard deviation, each [B, c, h, w]."""
        mean, deviation = cached.chunk(2, dim=1)
        return mean, deviation
