"""The continuous latents of a VQ codec, before quantisation."""

from __future__ import annotations

from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.codecs.latents import LatentCodec
from trilemma.codecs.vq import VQ
from trilemma.errors import UserError


class VQLatents(LatentCodec):
    """Codes are the latents of a trained `VQ` before quantisation; decoding quantises them first.

    The quantiser belongs to the decoder here, so a prior need not hit a codebook vector, only its neighbourhood.

    Source: Rombach et al. 2022, section 3.1 (the VQ-regularised first stage).

    Args:
        codec: The codec that is read.

    Raises:
        UserError: If it is not a `VQ`.
    """

    def __init__(self, codec: Codec) -> None:
        if not isinstance(codec, VQ):
            raise UserError(
                f"codec=vq_latents reads a VQ first stage before its quantiser, and a {type(codec).__name__} was loaded: "
                "name one such as codec.experiment=mnist/vqvae"
            )
        height, width = codec.code_shape
        super().__init__((codec.quantizer.dim, height, width))
        self.image_shape = codec.image_shape
        self.codec = codec

    def decode(self, code: Tensor) -> Tensor:
        """Decode codes [B, d, h, w] to images [B, C, H, W] in [-1, 1], each vector quantised to the nearest code first."""
        return self.codec.decode(self.codec.quantizer.nearest(self._latents(code)))

    def cache(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as latents before quantisation, [B, d, h, w]."""
        return self.codec.latents(images)

    def moments(self, cached: Tensor) -> tuple[Tensor, None]:
        """Return the latents themselves."""
        return cached, None
