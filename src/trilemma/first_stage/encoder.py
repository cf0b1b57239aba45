"""Encode uint8 images to the rows that are stored."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from trilemma.codecs.base import Codec, flatten
from trilemma.data.images import to_float


class Encoder:
    """Computes what a codec caches of images, in the type that is stored.

    Args:
        codec: On the device that does the work.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    @property
    def dtype(self) -> str:
        """The smallest type that holds them, whatever the images."""
        classes = self._codec.num_classes
        if classes is None:
            return "float32"
        return "uint8" if classes <= 2**8 else "int16" if classes <= 2**15 else "int32"

    def row_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...]:
        """Compute the shape of what is stored of one image: [L] tokens, or that of `Codec.cache`."""
        return self(torch.zeros(1, *image_shape, dtype=torch.uint8), flip=False).shape[1:]

    @torch.no_grad()
    def __call__(self, images: Tensor, *, flip: bool) -> npt.NDArray[Any]:
        """Encode images uint8 [n, C, H, W] as codes [n, ...]; with `flip` [n, 2, ...], the second those of the mirror images."""
        batch = to_float(images.to(self._codec.scale.device))
        versions = [self._codec.cache(b) for b in ((batch, batch.flip(3)) if flip else (batch,))]
        if self._codec.num_classes is not None:
            versions = [flatten(version) for version in versions]
        codes = torch.stack(versions, dim=1) if flip else versions[0]
        kept: npt.NDArray[Any] = codes.cpu().numpy().astype(self.dtype)
        return kept
