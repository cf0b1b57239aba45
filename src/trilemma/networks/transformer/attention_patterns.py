"""What a place of a causal transformer sees of those before it: all, or a block of memory around its block of queries.

Shapes: B images, L positions, H heads, n blocks of q queries that see m places each, d width of a head.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trilemma.errors import UserError


class LocalLayout(NamedTuple):
    """Who sees whom. Places are in the order in which positions are predicted, and blocks are runs of them.

    Attributes:
        order: Number, in raster order, of the position that each place predicts, int64 [L].
        memory: Places that each block may look at, int64 [n, m].
        mask: Which of them each query of the block sees, bool [n, q, m]: those up to its own place.
    """

    order: NDArray[np.int64]
    memory: NDArray[np.int64]
    mask: NDArray[np.bool_]


class AttentionPattern(ABC):
    """What each place sees of those before it."""

    @abstractmethod
    def layout(self, code_shape: Sequence[int]) -> LocalLayout | None:
        """Cut a grid (h, w) or (h, w, c), whose channels of a pixel lie side by side; None where every place sees all before it.

        Raises:
            UserError: If blocks do not tile it.
        """


class FullAttention(AttentionPattern):
    """Every place sees all before it, in raster order."""

    def layout(self, code_shape: Sequence[int]) -> None:
        """See `AttentionPattern`."""


class Local1D(AttentionPattern):
    """Runs of positions in raster order; each sees itself and so many positions before it.

    Source: Parmar et al. 2018, "Image Transformer", section 4.2.

    Args:
        query_length: Positions of a block, q.
        memory_length: Positions before the block that it sees too.

    Raises:
        UserError: If a length is out of its range.
    """

    def __init__(self, query_length: int, memory_length: int) -> None:
        if query_length < 1 or memory_length < 1:
            raise UserError(
                f"network.attention.query_length={query_length} network.attention.memory_length={memory_length}: must be at least 1"
            )
        self.query_length, self.memory_length = query_length, memory_length

    def layout(self, code_shape: Sequence[int]) -> LocalLayout:
        """See `AttentionPattern`."""
        length = math.prod(code_shape)
        if length % self.query_length:
            raise UserError(
                f"network.attention.query_length={self.query_length} does not divide the {length} positions of an image"
            )
        block = np.arange(0, length, self.query_length)
        memory = block[:, None] + np.arange(-self.memory_length, self.query_length)
        return _layout(np.arange(length), memory, memory >= 0)


class Local2D(AttentionPattern):
    """Rectangles of positions, in raster order; each sees itself and what lies within a margin above, left and right of it.

    Source: Parmar et al. 2018, "Image Transformer", section 4.2.

    Args:
        query_shape: Height and width of a block; each of the channels of a pixel is a column.
        memory_margin: Height of the margin above, and width of those to the left and to the right.

    Raises:
        UserError: If a length is out of its range.
    """

    def __init__(self, query_shape: Sequence[int], memory_margin: Sequence[int]) -> None:
        if len(query_shape) != 2 or len(memory_margin) != 2 or min(query_shape) < 1 or min(memory_margin) < 0:
            raise UserError(
                f"network.attention.query_shape={list(query_shape)} and network.attention.memory_margin={list(memory_margin)} must each be "
                "a height and a width"
            )
        self.query_shape, self.memory_margin = tuple(query_shape), tuple(memory_margin)

    def layout(self, code_shape: Sequence[int]) -> LocalLayout:
        """See `AttentionPattern`."""
        height, width = code_shape[0], math.prod(code_shape[1:])
        (q_height, q_width), (above, beside) = self.query_shape, self.memory_margin
        if height % q_height or width % q_width:
            raise UserError(
                f"network.attention.query_shape={list(self.query_shape)} does not tile an image of {height} rows and {width} columns"
            )
        raster = np.arange(height * width).reshape(height, width)
        tiles = raster.reshape(height // q_height, q_height, width // q_width, q_width)
        order = tiles.transpose(0, 2, 1, 3).ravel()
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        rows = np.arange(0, height, q_height)[:, None, None, None] + np.arange(-above, q_height)[:, None]
        columns = np.arange(0, width, q_width)[:, None, None] + np.arange(-beside, q_width + beside)
        inside = (rows >= 0) & (columns >= 0) & (columns < width)
        positions = rows.clip(0) * width + columns.clip(0, width - 1)
        num_blocks = height // q_height * (width // q_width)
        return _layout(order, place[positions].reshape(num_blocks, -1), inside.reshape(num_blocks, -1))


def _layout(order: NDArray[np.int64], memory: NDArray[np.int64], inside: NDArray[np.bool_]) -> LocalLayout:
    queries = np.arange(len(order)).reshape(len(memory), -1)
    mask = inside[:, None] & (memory[:, None] <= queries[:, :, None])
    return LocalLayout(order, np.where(inside, memory, 0), mask)


def attend_locally(q: Tensor, k: Tensor, v: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
    """Attend from each block of queries to its own memory.

    Args:
        q: Queries of n blocks, one after the other, [B, H, n q, d].
        k: Keys [B, H, places, d].
        v: Values [B, H, places, d].
        memory: See `LocalLayout`, [n, m]; places that are not there yet may be named where the mask is False.
        mask: See `LocalLayout`, [n, q, m].

    Returns:
        [B, H, n q, d].
    """
    B, H, num, d = q.shape
    n, m = memory.shape
    memory = memory.clamp(max=k.shape[2] - 1)
    blocks = q.reshape(B, H * n, num // n, d)
    k, v = (x[:, :, memory].reshape(B, H * n, m, d) for x in (k, v))
    attended = F.scaled_dot_product_attention(blocks, k, v, attn_mask=mask.repeat(H, 1, 1)[None])
    return attended.reshape(B, H, num, d)
