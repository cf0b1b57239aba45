"""Continuous latents of a trained first stage, standardised before a prior sees them."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from trilemma.codecs.base import Codec, Rows
from trilemma.errors import UserError
from trilemma.processes.noise import NoiseSource

_CHUNK = 4096  # images whose latents are widened to float64 at once


class LatentCodec(Codec):
    """Codes are (latents - shift) * scale, with the latents of the first stage's encoder.

    `shift` is the mean of each channel and `scale` one number, 1 over the root of the mean variance, both over the whole training
    set (Rombach et al. 2022, appendix G, take the first batch and no mean). A diffusion ends in N(0, I), so codes need mean
    zero and variance one as a whole. One scale for all channels keeps the codec's own geometry: distances between codes are
    those that its decoder, or its codebook, was trained with, and a channel that says little is not blown up to count as
    much as one that says a lot. A shift changes no distance, so each channel has its own.

    Both are buffers, so they travel in a prior's checkpoint; they are 0 and 1 until `standardise`.

    Args:
        code_shape: (c, h, w).
    """

    num_classes = None
    code_shape: tuple[int, int, int]
    shift: Tensor

    def __init__(self, code_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.code_shape = code_shape
        self.register_buffer("shift", torch.zeros(code_shape[0], 1, 1))

    @abstractmethod
    def cache(self, images: Tensor) -> Tensor:
        """Compute the parameters of the latents' distribution of images [B, C, H, W], before `shift` and `scale`."""

    @abstractmethod
    def moments(self, cached: Tensor) -> tuple[Tensor, Tensor | None]:
        """Extract mean [B, c, h, w] and standard deviation (None where it is zero) of the latents from what `cache` returned."""

    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Encode images [B, C, H, W] as codes [B, c, h, w]: the mean, or a draw where `noise` is given and latents are random."""
        return self.from_cache(self.cache(images), noise)

    def from_cache(self, cached: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Compute codes [B, c, h, w] from what `cache` returned."""
        latents, deviation = self.moments(cached)
        if noise is not None and deviation is not None:
            latents = latents + deviation * noise.normal(tuple(latents.shape)).to(latents)
        return (latents - self.shift) * self.scale

    @torch.no_grad()
    def standardise(self, cached: Rows) -> None:
        """Set `shift` and `scale` so that codes drawn for the training set have mean 0 a channel and mean square 1.

        Args:
            cached: What `cache` returned of the training set, [N, ...].

        Raises:
            UserError: If all latents are the same, or one is not finite.
        """
        starts = range(0, len(cached), _CHUNK)
        total = torch.zeros_like(self.shift, dtype=torch.float64)
        for start in starts:
            latents, _ = self.moments(cached[start : start + _CHUNK])
            total += latents.double().sum((0, 2, 3))[:, None, None].to(total.device)
        shift = total * self.code_shape[0] / (len(cached) * self.length)
        power = 0.0
        for start in starts:
            latents, deviation = self.moments(cached[start : start + _CHUNK])
            power += float((latents.double() - shift.to(latents.device)).square().sum())
            power += 0.0 if deviation is None else float(deviation.double().square().sum())
        scale = (len(cached) * self.length / power) ** 0.5 if power > 0 else float("inf")
        if not 0 < scale < float("inf"):
            raise UserError(
                "the first stage's latents are all alike or not finite: its training went wrong; look at its reconstructions"
            )
        self.shift.copy_(shift)
        self.scale.fill_(scale)

    def _latents(self, code: Tensor) -> Tensor:
        """Undo `shift` and `scale`: the latents of codes, in the codec's own precision."""
        return code.to(self.scale.dtype) / self.scale + self.shift
