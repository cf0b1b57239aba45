"""The interface of a quantiser, and vector quantisation with a codebook of exponential moving averages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from loguru import logger
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import sample_vectors_distributed

# The library warns where the first batch is smaller than the codebook; dead-code expiry fixes that by itself.
logger.disable("vector_quantize_pytorch")


class Quantized(NamedTuple):
    """What a quantiser returns for latents.

    Attributes:
        latents: Codebook vectors [B, d, h, w]; in training gradients pass through them to the quantiser's input.
        code: Indices, int64 [B, h, w].
        commitment: The weighted commitment loss, a scalar.
    """

    latents: Tensor
    code: Tensor
    commitment: Tensor


class Quantizer(nn.Module, ABC):
    """Latents <-> indices of a codebook.

    Attributes:
        codebook_size: Number of codes K.
        dim: Width d of a latent.
    """

    codebook_size: int
    dim: int

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """The codebook vectors, [K, d]."""

    @abstractmethod
    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B, d, h, w]; in training mode update the codebook too, where it moves by itself."""

    @abstractmethod
    def nearest(self, latents: Tensor) -> Tensor:
        """Find the codes of latents [B, d, h, w], int64 [B, h, w]; never changes state."""

    def embed(self, code: Tensor) -> Tensor:
        """Look up the codebook vectors of indices [B, h, w], [B, d, h, w]."""
        return F.embedding(code, self.codebook).movedim(-1, 1)


class EMAQuantizer(Quantizer):
    """Nearest codebook vector; the codebook is the moving average of the latents assigned to it.

    A code whose moving average of use falls below `dead_code_threshold` times the even share 1/K is replaced by a
    latent drawn from the batch and counted as if it had the even share, so it has time to prove itself.

    Sources: van den Oord et al. 2017 (VQ-VAE), eq. 3 and appendix A.1; Fifty et al. 2024 (the rotation trick), section
    4.2; Dhariwal et al. 2020 (Jukebox), section 3 (restart of dead codes); Zeghidour et al. 2021 (SoundStream), section
    III-C (k-means start). Training runs in the library `vector-quantize-pytorch`.

    Randomness (k-means, restarts) comes from torch's global generators. All state is in buffers.

    Args:
        codebook_size: Number of codes K.
        dim: Width d of a latent.
        decay: Of the moving averages, per batch.
        commitment: Weight of the commitment loss.
        kmeans_init: Start the codebook by k-means on the first training batch; otherwise from random vectors.
        dead_code_threshold: See above; 0 never replaces a code. In units of the even share it fits any batch size.
        gradient: How the decoder's gradient reaches the encoder: "rotation" or "straight_through".

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        *,
        codebook_size: int,
        dim: int,
        decay: float = 0.95,
        commitment: float = 1.0,
        kmeans_init: bool = True,
        dead_code_threshold: float = 0.1,
        gradient: Literal["rotation", "straight_through"] = "rotation",
    ) -> None:
        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"codebook_size={codebook_size} must be at least 2")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} must be in [0, 1)")
        if not 0 <= dead_code_threshold < 1:
            raise ValueError(f"dead_code_threshold={dead_code_threshold} is a share of even use: it must be in [0, 1)")
        if gradient not in ("rotation", "straight_through"):
            raise ValueError(f"gradient={gradient!r} must be 'rotation' or 'straight_through'")
        self.codebook_size = codebook_size
        self.dim = dim
        self.commitment = commitment
        self.dead_code_threshold = dead_code_threshold
        self.vq = VectorQuantize(
            dim,
            codebook_size,
            decay=decay,
            commitment_weight=commitment,
            kmeans_init=kmeans_init,
            threshold_ema_dead_code=dead_code_threshold,
            rotation_trick=gradient == "rotation",
            accept_image_fmap=True,
            sync_codebook=False,
        )
        if kmeans_init:
            # The library's zeros would decode every code alike until the first training batch.
            self.vq._codebook.embed.normal_()

    @property
    def codebook(self) -> Tensor:
        """The codebook vectors, [K, d]."""
        vectors: Tensor = self.vq._codebook.embed[0]
        return vectors

    def forward(self, latents: Tensor) -> Quantized:
        """Quantise latents [B, d, h, w]; in training mode update the codebook too."""
        # Distances in bfloat16 would confuse neighbouring codes.
        with full_precision(latents.device):
            wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
            if self.training:
                self._prepare_update(wide)
                return Quantized(*self.vq(wide))
            code = self.nearest(wide)
            vectors = self.embed(code)
            return Quantized(vectors, code, self.commitment * F.mse_loss(wide, vectors))

    def nearest(self, latents: Tensor) -> Tensor:
        """Find the nearest code of latents [B, d, h, w], int64 [B, h, w]; never changes state.

        The library's own forward would run k-means on validation data where that came first.
        """
        with full_precision(latents.device):
            codebook = self.codebook
            vectors = latents.movedim(1, -1).to(codebook.dtype)
            # |z - e|^2 less |z|^2, which is the same for every code.
            distance = codebook.square().sum(1) - 2 * (vectors @ codebook.T)
        return distance.argmin(-1)

    @torch.no_grad()
    def take_codebook(self, vectors: Tensor) -> None:
        """Take a codebook that was learned elsewhere, [K, d]; each vector counts as the mean of one latent."""
        state = self.vq._codebook
        for own in (state.embed, state.embed_avg):
            own.copy_(vectors[None])

    def _prepare_update(self, latents: Tensor) -> None:
        """Pass the library what is unknown at construction: the batch's size, and whether several processes train."""
        codebook = self.vq._codebook
        num_processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        even_share = latents.numel() // self.dim * num_processes / self.codebook_size
        codebook.threshold_ema_dead_code = self.dead_code_threshold * even_share
        codebook.reset_cluster_size = even_share
        if num_processes > 1 and not codebook.use_ddp:
            codebook.use_ddp = True
            codebook.all_reduce_fn = codebook.kmeans_all_reduce_fn = dist.all_reduce
            codebook.sample_fn = codebook.replace_sample_fn = sample_vectors_distributed


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Disable autocast inside; the meta device, on which a step is only planned, has none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
