"""Convolutions that look up and to the left, over a whole map or one row or pixel of it at a time.

Maps are [B, c, h, w]. What a convolution has seen of the rows before is kept in a `Cache`, so that a new row or pixel costs what it
touches and no more.

Source of the caches: Ramachandran et al. 2017, "Fast generation for convolutional autoregressive models".
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MaskType = Literal["A", "B"]


@dataclass
class Cache:
    """What is kept of the pixels before, for a batch of images that grow pixel by pixel.

    Attributes:
        row: The row that is being filled; -1 before the first.
        inputs: Of each convolution, the number and the values of the rows it looks at, [B, c, kernel height, padded width].
        features: Whatever else a part of a network keeps, by that part.
    """

    row: int = -1
    inputs: dict[nn.Module, tuple[int, Tensor]] = field(default_factory=dict)
    features: dict[nn.Module, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cursor:
    """The row, or the pixel of a row, that is computed next; rows and pixels come in raster order.

    Attributes:
        cache: What is kept.
        width: Width w of the map.
        row: Number of the row.
        column: Number of the pixel; None for a whole row.
    """

    cache: Cache
    width: int
    row: int
    column: int | None = None

    @property
    def on_coarse_grid(self) -> bool:
        """Whether the grid of half the size has this row or pixel too."""
        return self.row % 2 == 0 and (self.column is None or self.column % 2 == 0)

    def halved(self) -> Cursor:
        """Find the same place on the grid of half the size."""
        column = None if self.column is None else self.column // 2
        return replace(self, width=self.width // 2, row=self.row // 2, column=column)

    def read(self, rows: Tensor) -> Tensor:
        """Take from a row, or two of which this is the one of its parity, [B, c, 1 or 2, w]: what belongs here, [B, c, 1, w or 1]."""
        number = self.row % rows.shape[2]
        here = rows[:, :, number : number + 1]
        return here if self.column is None else here[..., self.column : self.column + 1]


class CausalConv(nn.Module):
    """A convolution whose window ends in the row of its output, `right` columns to the right of it.

    A pixel of several channels is several positions: its features are as many groups, and a mask hides from each what comes after it in
    its own pixel (van den Oord et al. 2016, "Pixel recurrent neural networks", section 3.4).

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel_size: Height and width of the window.
        right: Columns right of the output that it looks at; the input's row must then be known to its end.
        stride: 2 halves the grid: output (i, j) is that of (2 i, 2 j).
        mask: Of the window's last column: "A" shows a group the groups before it, "B" itself too; None shows all.
        num_groups: C, in equal parts of the input and of each half of the output.
        num_halves: Parts of the output that each hold all groups: 2 where it is to be gated.
    """

    mask: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        right: int = 0,
        stride: int = 1,
        mask: MaskType | None = None,
        num_groups: int = 1,
        num_halves: int = 1,
    ) -> None:
        super().__init__()
        self.kernel_size, self.right, self.stride = kernel_size, right, stride
        # Made by a layer of torch's, for its initialisation.
        made = nn.Conv2d(in_channels, out_channels, kernel_size)
        assert made.bias is not None
        self.weight, self.bias = made.weight, made.bias
        seen = None
        if mask == "A" or (mask == "B" and num_groups > 1):
            seen = torch.ones_like(made.weight)
            inputs = torch.arange(num_groups).repeat_interleave(in_channels // num_groups)
            outputs = torch.arange(num_groups).repeat_interleave(out_channels // num_groups // num_halves)
            last = outputs.repeat(num_halves)[:, None] - inputs >= (1 if mask == "A" else 0)
            seen[:, :, -1, -1] = last.to(seen)
        self.register_buffer("mask", seen, persistent=False)

    def forward(self, x: Tensor, cursor: Cursor | None = None) -> Tensor:
        """Transform a map [B, in, h, w]; with a cursor one row [B, in, 1, w] or pixel [B, in, 1, 1] of it."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        if cursor is None:
            height, width = self.kernel_size
            x = F.pad(x, (width - 1 - self.right, self.right, height - 1, 0))
        else:
            x = self.window(x, cursor)
            if cursor.column is not None:  # one product of matrices
                return F.linear(x.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]
        return F.conv2d(x, weight, self.bias, self.stride)

    def window(self, x: Tensor, cursor: Cursor) -> Tensor:
        """Keep a row or a pixel, and return all that its output looks at, [B, in, kernel height, ...]."""
        height, width = self.kernel_size
        if height == width == 1:
            return x
        left = width - 1 - self.right
        shape = (*x.shape[:2], height, cursor.width + width - 1)
        row, rows = cursor.cache.inputs.get(self) or (cursor.row, x.new_zeros(shape))
        if row != cursor.row:
            rows[:, :, :-1] = rows[:, :, 1:].clone()
            rows[:, :, -1] = 0
        cursor.cache.inputs[self] = (cursor.row, rows)
        if cursor.column is None:
            rows[:, :, -1, left : left + cursor.width] = x[:, :, 0]
            return rows
        rows[:, :, -1, left + cursor.column] = x[:, :, 0, 0]
        return rows[..., cursor.column : cursor.column + width]


class CausalUpsampling(nn.Module):
    """A transposed convolution that doubles the grid: pixel (2 i, 2 j) and its neighbours see the coarse (i, j).

    Args:
        channels: Of input and output.
        right: 1 sees coarse pixels right of (i, j) too, as a stream does that sees whole rows; else 0.
    """

    def __init__(self, channels: int, *, right: int = 0) -> None:
        super().__init__()
        self.right = right
        self.conv = nn.ConvTranspose2d(channels, channels, (2, 2 + right), stride=2)

    def forward(self, x: Tensor, cursor: Cursor | None = None) -> Tensor:
        """Transform a map [B, c, h, w] to [B, c, 2 h, 2 w].

        With a cursor of the fine grid: one coarse row or pixel, to what of it belongs there; the rest is kept for `kept`.
        """
        fine: Tensor = self.conv(x)[..., self.right : self.right + 2 * x.shape[3]]
        if cursor is None:
            return fine
        if cursor.column is None:
            cursor.cache.features[self] = fine
        else:
            if self not in cursor.cache.features:
                cursor.cache.features[self] = fine.new_zeros((*fine.shape[:3], cursor.width))
            cursor.cache.features[self][..., cursor.column : cursor.column + 2] = fine
        return self.kept(cursor)

    def kept(self, cursor: Cursor) -> Tensor:
        """Return what an earlier call made for this row or pixel."""
        return cursor.read(cursor.cache.features[self])


def shifted_down(x: Tensor) -> Tensor:
    """Shift a map down by a row: a pixel gets the one above it, and zeros in the first row."""
    return F.pad(x[:, :, :-1], (0, 0, 1, 0))


def shifted_right(x: Tensor) -> Tensor:
    """Shift a map right by a column: a pixel gets the one left of it, and zeros in the first column."""
    return F.pad(x[..., :-1], (1, 0))
