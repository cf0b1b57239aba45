"""Squared Euclidean distances, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def squared_distances(x: Tensor, y: Tensor, *, num_rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of the matrix of squared distances, from |x|^2 + |y|^2 - 2xy.

    The matrix product is nine times faster than differences. It cancels: centre both sets first, and where zero must
    be zero, take the distances of the few pairs that matter by difference.

    Args:
        x: float64 [N, d].
        y: float64 [M, d].
        num_rows: Rows in a block, which bounds the memory to num_rows x M numbers.

    Yields:
        Which rows of x, and their distances to all of y, [<= num_rows, M]; rounding may leave one a little below zero.
        The next block is written over them: a block of a few megabytes stays in the cache, and new memory for each
        would cost as much as the product.
    """
    norms_x, norms_y = x.square().sum(dim=1), y.square().sum(dim=1)
    memory = x.new_empty(min(num_rows, len(x)), len(y))
    for start in range(0, len(x), num_rows):
        rows = slice(start, start + num_rows)
        block = memory[: len(x[rows])]
        torch.add(norms_x[rows, None], norms_y, out=block)
        yield rows, block.addmm_(x[rows], y.mT, alpha=-2)
