"""Conversion between the two image formats: float in [-1, 1] inside the program, uint8 in files and metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(images: Tensor) -> Tensor:
    """Convert images uint8 to float32 in [-1, 1], any shape: x / 127.5 - 1.

    Raises:
        TypeError: If the images are not uint8, which a second conversion would otherwise hide.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"to_float takes uint8 images, got {images.dtype}")
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Convert images float in [-1, 1] to uint8, any shape: rounded to the nearest level, clipped; inverse of `to_float`.

    Raises:
        TypeError: If the images are not floating point.
    """
    if not images.is_floating_point():
        raise TypeError(f"to_uint8 takes float images, got {images.dtype}")
    # float32 at least: bfloat16 cannot tell neighbouring levels apart once they are scaled by 127.5.
    wide = images if images.dtype == torch.float64 else images.to(torch.float32)
    return wide.add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8)
