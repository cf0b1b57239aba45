"""The interface of a codec."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, Self

import torch
from torch import Tensor, nn

from trilemma.processes.noise import NoiseSource


class Rows(Protocol):
    """What codecs cache of a whole data set, [N, ...]: a tensor, or an object that reads the rows it is indexed with."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice, /) -> Tensor: ...


class Codec(nn.Module, ABC):
    """Image <-> code.

    Attributes:
        image_shape: (C, H, W).
        code_shape: (h, w) or (h, w, c) for tokens, raster order, the channel fastest; (c, h, w) for continuous codes.
        num_classes: Number of token classes K; None for continuous codes.
        scale: Buffer that a continuous code is multiplied by to have unit deviation; 1 for tokens.
        bound: Continuous codes of images lie in [-bound, bound]; None where nothing bounds them, and for tokens.
        binarize: How grey pixels become two-valued, as in `ImageData`: "threshold" or "dynamic"; None where they do not.
    """

    image_shape: tuple[int, int, int]
    code_shape: tuple[int, ...]
    num_classes: int | None
    scale: Tensor
    bound: float | None = None
    binarize: Literal["threshold", "dynamic"] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self._frozen = False

    @property
    def length(self) -> int:
        """Number of code entries L."""
        return math.prod(self.code_shape)

    @abstractmethod
    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Encode images [B, C, H, W] in [-1, 1] as codes [B, *code_shape]: int64 tokens, or float latents."""

    @abstractmethod
    def decode(self, code: Tensor) -> Tensor:
        """Decode codes [B, *code_shape] to images [B, C, H, W] in [-1, 1]."""

    def cache(self, images: Tensor) -> Tensor:
        """Compute what is stored of images [B, C, H, W] to recover their codes without them; here the codes themselves."""
        return self.encode(images)

    def from_cache(self, cached: Tensor, noise: NoiseSource | None = None) -> Tensor:
        """Recover codes from what `cache` returned, equal to `encode(images, noise)` of the same images."""
        return cached

    def standardise(self, cached: Rows) -> None:
        """Fit the scaling that gives codes unit variance to what `cache` returned of a training set [N, ...]; here nothing."""

    def freeze(self) -> Self:
        """Freeze the codec for good: no gradients, and evaluation mode whatever mode a parent module is put in."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen codec stays in evaluation mode."""
        return super().train(mode and not self._frozen)


def image_shape_of(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Check an image shape (C, H, W), which a configuration gives as a list.

    Raises:
        ValueError: If there are not three positive sizes.
    """
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"image_shape must be (C, H, W), got {tuple(sizes)}")
    channels, height, width = sizes
    return channels, height, width


def flatten(code: Tensor) -> Tensor:
    """Flatten codes [B, *code_shape] to sequences [B, L] in raster order."""
    return code.flatten(1)


def unflatten(tokens: Tensor, code_shape: Sequence[int]) -> Tensor:
    """Reshape sequences [B, L] to codes [B, *code_shape]; inverse of `flatten`.

    Raises:
        ValueError: If L is not the product of `code_shape`.
    """
    if tokens.ndim != 2 or tokens.shape[1] != math.prod(code_shape):
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} do not fill codes of shape {tuple(code_shape)}")
    return tokens.reshape(-1, *code_shape)
