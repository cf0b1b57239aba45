"""What a codec is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from trilemma.processes.noise import NoiseSource


class Codec(nn.Module, ABC):
    """Image <-> code.

    Attributes:
        image_shape: (C, H, W).
        code_shape: (h, w) or (h, w, c) for tokens, raster order with the channel fastest; (c, h, w) for continuous codes.
        num_classes: Number of token classes K; None for continuous codes.
        scale: Buffer that a continuous code is multiplied by to have unit deviation; 1 for tokens.
    """

    image_shape: tuple[int, int, int]
    code_shape: tuple[int, ...]
    num_classes: int | None
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    @property
    def length(self) -> int:
        """Number of code entries L."""
        return math.prod(self.code_shape)

    @abstractmethod
    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] to codes [B, *code_shape]: int64 tokens, or float latents."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """Codes [B, *code_shape] to images [B, C, H, W] in [-1, 1]."""
