"""Levels of images: `num_levels` of them, evenly spaced from -1 to 1."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.distributions.base import at_least_float32
from trilemma.errors import UserError


def check_levels(num_levels: int) -> None:
    """Check a number of levels.

    Raises:
        UserError: If there are fewer than 2.
    """
    if num_levels < 2:
        raise UserError(f"num_levels={num_levels}: images have at least 2 levels, and 256 where they are uint8")


def level_index(x: Tensor, num_levels: int) -> Tensor:
    """Find the level nearest to x, int64 shaped like x; outside [-1, 1] the first or the last."""
    return ((at_least_float32(x).clamp(-1.0, 1.0) + 1.0) * (0.5 * (num_levels - 1))).round().to(torch.int64)


def level_value(index: Tensor, num_levels: int, dtype: torch.dtype) -> Tensor:
    """Convert levels int64 to values in [-1, 1], shaped like them."""
    return (index.double() * (2.0 / (num_levels - 1)) - 1.0).to(dtype)


def lower_edge(index: Tensor, num_levels: int, dtype: torch.dtype) -> Tensor:
    """Compute the value half-way between levels int64 and the ones below them, shaped like them."""
    return ((index.double() - 0.5) * (2.0 / (num_levels - 1)) - 1.0).to(dtype)
