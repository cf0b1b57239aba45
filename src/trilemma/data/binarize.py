"""Grey images as two-valued ones: thresholded, or drawn from their grey values.

Nats of the two are not comparable, nor with those of Larochelle's fixed draw: the mode is part of the data set's name, and its draws of the
content that is hashed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.processes.noise import Noise, NoiseSource, mixed_seed

Binarize = Literal["threshold", "dynamic"]

_BLOCK = 1000  # images drawn at a time


def check_binarize(mode: str | None) -> None:
    """Refuse an unknown mode; None leaves the images grey.

    Raises:
        UserError: If it is none of `Binarize`.
    """
    if mode is not None and mode not in get_args(Binarize):
        raise UserError(
            f"data.binarize={mode}: take dynamic (each pixel is on with its grey value as probability), threshold, or null for grey images"
        )


def num_levels(mode: str | None) -> int:
    """Count the values that a subpixel takes: 2 where the images are binarised, else 256."""
    return 256 if mode is None else 2


def threshold(images: Tensor) -> Tensor:
    """Set subpixels above 127 to 255 and the others to 0, uint8 of any shape."""
    return (images > 127).to(torch.uint8) * 255


def draw_binary(images: Tensor, noise: NoiseSource) -> Tensor:
    """Set each subpixel to 255 with probability grey / 255, else to 0 (Salakhutdinov and Murray 2008).

    Args:
        images: uint8 [B, C, H, W].
        noise: For B images.
    """
    return (noise.uniform(tuple(images.shape)) * 255.0 < images).to(torch.uint8) * 255


def draw_split(split: Split, name: str) -> Split:
    """Draw a split once and for all: by the index of each image in its source and the split's name, whatever the seeds of the run."""
    assert isinstance(split.images, Tensor)
    seed = mixed_seed(*name.encode())
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(split), _BLOCK)]
    drawn = [draw_binary(split.images[block], Noise(seed, split.index[block])) for block in blocks]
    return replace(split, images=torch.cat(drawn))
