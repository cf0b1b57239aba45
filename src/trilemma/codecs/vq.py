"""Images as a grid of codebook indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.codecs.base import Codec, image_shape_of
from trilemma.codecs.first_stage_grid import check_coders, code_grid
from trilemma.codecs.quantizer import Quantizer
from trilemma.errors import UserError
from trilemma.networks.image_coder import ImageDecoder, ImageEncoder
from trilemma.processes.noise import NoiseSource


class VQOutput(NamedTuple):
    """What `VQ.forward` gives a training step.

    Attributes:
        reconstruction: Images [B, C, H, W], not clipped.
        code: int64 [B, h, w].
        commitment: The weighted commitment loss, a scalar.
    """

    reconstruction: Tensor
    code: Tensor
    commitment: Tensor


class VQ(Codec):
    """The VQ codec: an encoder, a quantiser and a decoder.

    Source: van den Oord et al. 2017 (VQ-VAE).

    Args:
        image_shape: (C, H, W).
        encoder: Images to latents.
        decoder: Latents to images.
        quantizer: Latents to codes.

    Raises:
        UserError: If the encoder reads no images of that size (a convolutional one halves them), or a part codes no images.
        ValueError: If the parts do not fit each other.
    """

    num_classes: int

    def __init__(
        self, *, image_shape: Sequence[int], encoder: ImageEncoder, decoder: ImageDecoder, quantizer: Quantizer
    ) -> None:
        super().__init__()
        self.image_shape = image_shape_of(image_shape)
        check_coders(encoder, decoder)
        dim = quantizer.dim
        self.code_shape = code_grid(self.image_shape, encoder, decoder, encoded_channels=dim, decoded_channels=dim)
        self.num_classes = quantizer.codebook_size
        self.encoder = encoder
        self.decoder = decoder
        self.quantizer = quantizer

    def check_codebook(self, num_images: int | None) -> None:
        """Check that a training set of `num_images` images, if known, has as many tokens as there are codes.

        Raises:
            UserError: If it has fewer: some codes could never be used.
        """
        if num_images is not None and num_images * self.length < self.num_classes:
            raise UserError(
                f"model.codec.quantizer has {self.num_classes:,} codes, more than the {num_images * self.length:,} tokens of "
                f"{num_images:,} training images: take fewer codes"
            )

    def forward(self, images: Tensor) -> VQOutput:
        """Reconstruct images [B, C, H, W]; in training mode the codebook is updated."""
        quantized = self.quantizer(self.encoder(images))
        return VQOutput(self.decoder(quantized.latents), quantized.code, quantized.commitment)

    @torch.no_grad()
    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Encode images [B, C, H, W] as tokens int64 [B, h, w]; never updates the codebook."""
        return self.quantizer.nearest(self.encoder(images))

    def decode(self, code: Tensor) -> Tensor:
        """Decode tokens [B, h, w] to images [B, C, H, W] in [-1, 1]."""
        return self.decoder(self.embed(code)).clamp(-1.0, 1.0)

    def latents(self, images: Tensor) -> Tensor:
        """Encode images [B, C, H, W] as latents before quantisation, [B, d, h, w]."""
        return self.encoder(images)

    def embed(self, code: Tensor) -> Tensor:
        """Look up the codebook vectors [B, d, h, w] of tokens [B, h, w]."""
        return self.quantizer.embed(code)
