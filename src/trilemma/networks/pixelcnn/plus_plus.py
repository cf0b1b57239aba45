"""The PixelCNN++."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.given import check_given
from trilemma.networks.pixelcnn.causal import (
    Cache,
    CausalConv,
    CausalUpsampling,
    Cursor,
    shifted_down,
    shifted_right,
)

Record = dict[nn.Module, Any]
Stream = Callable[[Tensor, Cursor | None], Tensor]


class GatedResNet(nn.Module):
    """Two causal convolutions, gated and residual.

    Args:
        channels: Width F.
        kernel_size: Height and width of the windows.
        right: See `CausalConv`.
        num_aux: How many times F channels of another stream or of a skip connection it gets; 0 for none.
        dropout: Probability of dropping an entry between the convolutions.
        condition_dim: Width of the pooled condition; None where there is none.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: tuple[int, int],
        *,
        right: int,
        num_aux: int,
        dropout: float,
        condition_dim: int | None,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv(2 * channels, channels, kernel_size, right=right)
        self.aux = CausalConv(2 * num_aux * channels, channels, (1, 1)) if num_aux else None
        self.dropout = nn.Dropout(dropout)
        self.conv2 = CausalConv(2 * channels, 2 * channels, kernel_size, right=right)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)  # a block begins near the identity, as with the released code's init_scale
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, 2 * channels, bias=False)

    def forward(
        self, x: Tensor, aux: Tensor | None = None, pooled: Tensor | None = None, cursor: Cursor | None = None
    ) -> Tensor:
        """Transform x [B, F, h, w], given aux [B, num_aux F, h, w], to the same shape."""
        y: Tensor = self.conv1(concat_elu(x), cursor)
        if self.aux is not None and aux is not None:
            y = y + self.aux(concat_elu(aux), cursor)
        y = self.conv2(self.dropout(concat_elu(y)), cursor)
        if self.condition is not None:
            y = y + self.condition(pooled)[:, :, None, None]
        a, b = y.chunk(2, 1)
        return x + a * b.sigmoid()


class _Level(nn.Module):
    """One resolution: blocks down, the coarser levels, blocks up with a skip connection each; of both streams.

    The stream u sees the rows above, whole; the stream ul sees u, and its own row to the left.
    """

    def __init__(
        self, channels: int, num_blocks: int, num_levels: int, *, dropout: float, condition_dim: int | None
    ) -> None:
        super().__init__()

        def blocks(num: int, kernel_size: tuple[int, int], right: int, num_aux: int) -> nn.ModuleList:
            options: dict[str, Any] = {"dropout": dropout, "condition_dim": condition_dim}
            return nn.ModuleList(
                GatedResNet(channels, kernel_size, right=right, num_aux=num_aux, **options) for _ in range(num)
            )

        num_up = num_blocks + (1 if num_levels > 1 else 0)
        self.u_down, self.u_up = blocks(num_blocks, (2, 3), 1, 0), blocks(num_up, (2, 3), 1, 1)
        self.ul_down, self.ul_up = blocks(num_blocks, (2, 2), 0, 1), blocks(num_up, (2, 2), 0, 2)
        self.inner: _Level | None = None
        if num_levels > 1:
            self.inner = _Level(channels, num_blocks, num_levels - 1, dropout=dropout, condition_dim=condition_dim)
            self.u_shrink = CausalConv(channels, channels, (2, 3), right=1, stride=2)
            self.ul_shrink = CausalConv(channels, channels, (2, 2), stride=2)
            self.u_grow = CausalUpsampling(channels, right=1)
            self.ul_grow = CausalUpsampling(channels)

    def u(self, pooled: Tensor | None, record: Record, u: Tensor, cursor: Cursor | None = None) -> Tensor:
        """Run the stream u, of whole maps or of a row, and record what the stream ul will see of it."""
        skips, down, up = [u], [], []
        for block in self.u_down:
            u = block(u, None, pooled, cursor)
            skips.append(u)
            down.append(u)
        if self.inner is None:
            u = skips.pop()
        else:
            stream = partial(self.inner.u, pooled, record)
            u = self._coarser(stream, u, self.u_shrink, self.u_grow, cursor)
        for block in self.u_up:
            u = block(u, skips.pop(), pooled, cursor)
            up.append(u)
        record[self] = (down, up)
        return u

    def ul(self, pooled: Tensor | None, record: Record, ul: Tensor, cursor: Cursor | None = None) -> Tensor:
        """Run the stream ul, of whole maps or of a pixel, after the stream u."""

        def here(u: Tensor) -> Tensor:
            return u if cursor is None else cursor.read(u)

        down, up = record[self]
        skips = [ul]
        for block, u in zip(self.ul_down, down, strict=True):
            ul = block(ul, here(u), pooled, cursor)
            skips.append(ul)
        if self.inner is None:
            ul = skips.pop()
        else:
            stream = partial(self.inner.ul, pooled, record)
            ul = self._coarser(stream, ul, self.ul_shrink, self.ul_grow, cursor)
        for block, u in zip(self.ul_up, up, strict=True):
            ul = block(ul, torch.cat([here(u), skips.pop()], 1), pooled, cursor)
        return ul

    def _coarser(
        self, stream: Stream, x: Tensor, shrink: CausalConv, grow: CausalUpsampling, cursor: Cursor | None
    ) -> Tensor:
        """Run a stream of the coarser levels, where they have this row or pixel; else read what they made before."""
        if cursor is not None and not cursor.on_coarse_grid:
            shrink.window(x, cursor)
            return grow.kept(cursor)
        grown: Tensor = grow(stream(shrink(x, cursor), None if cursor is None else cursor.halved()), cursor)
        return grown


class PixelCNNPlusPlus(nn.Module):
    """Predicts a mixture for every pixel from the pixels above it and to the left of it.

    Two streams of gated residual blocks go down to coarser grids and up again, with skip connections at every block.

    Source: Salimans et al. 2017, "PixelCNN++", sections 2.3 to 2.5, and the released code. Unlike there, weights are not normalised, the
    initialisation does not look at data, and it is the image that is shifted, not the first features.

    Args:
        in_channels: Channels C of the images.
        image_size: Height and width, which `num_levels` - 1 halvings must divide.
        channels: Width F of every block.
        num_blocks: Blocks a level, of each stream and direction.
        num_levels: Resolutions.
        num_components: M of the mixture.
        dropout: Probability of dropping an entry within the blocks.
        condition_dim: Width of the pooled condition; None where there is none.

    Raises:
        UserError: If an option is out of its range, or the image cannot be halved so often.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        channels: int = 160,
        num_blocks: int = 5,
        num_levels: int = 3,
        num_components: int = 10,
        dropout: float = 0.5,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {
            "channels": channels,
            "num_blocks": num_blocks,
            "num_levels": num_levels,
            "num_components": num_components,
        }.items():
            if value < 1:
                raise UserError(f"network.{name}={value}: must be at least 1")
        if image_size % 2 ** (num_levels - 1):
            raise UserError(
                f"network.num_levels={num_levels}: {image_size} x {image_size} pixels cannot be halved {num_levels - 1} times"
            )
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"network.dropout={dropout}: must lie in [0, 1)")
        self.num_components, self.condition_dim = num_components, condition_dim
        with_ones = in_channels + 1
        self.u_in = CausalConv(with_ones, channels, (2, 3), right=1)
        self.ul_above = CausalConv(with_ones, channels, (1, 3), right=1)
        self.ul_left = CausalConv(with_ones, channels, (2, 1))
        self.levels = _Level(channels, num_blocks, num_levels, dropout=dropout, condition_dim=condition_dim)
        per_component = 1 + 2 * in_channels + in_channels * (in_channels - 1) // 2
        self.head = CausalConv(channels, num_components * per_component, (1, 1))

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`)."""
        return [module for module in self.modules() if isinstance(module, GatedResNet)]

    def forward(
        self,
        x: Tensor,
        pooled: Tensor | None = None,
        *,
        cache: Cache | None = None,
        pixel: tuple[int, int] | None = None,
    ) -> Tensor:
        """Compute the parameters of the mixture of every pixel, or of one; arguments as of `GatedPixelCNN.forward`.

        Args:
            x: Images in [-1, 1], [B, C, H, W].
            pooled: Condition [B, condition_dim]; given exactly where the network was built with one.
            cache: With `pixel`: what earlier calls have kept.
            pixel: Row and column, all before which are in `x`; each asked for once, in raster order.

        Returns:
            [B, M (1 + 2 C + C (C - 1) / 2), H, W]: logits, locations, log-scales, coefficients; with `pixel` [B, ..., 1, 1].

        Raises:
            ValueError: If the condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        parameters: Tensor
        if cache is not None and pixel is not None:
            parameters = self._pixel(x, pooled, cache, *pixel)
            return parameters
        x = _with_ones(x)
        above, record = shifted_down(x), Record()
        self.levels.u(pooled, record, self.u_in(above))
        ul = self.ul_above(above) + self.ul_left(shifted_right(x))
        parameters = self.head(F.elu(self.levels.ul(pooled, record, ul)))
        return parameters

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _pixel(self, x: Tensor, pooled: Tensor | None, cache: Cache, row: int, column: int) -> Tensor:
        width, record = x.shape[3], cache.features
        if cache.row != row:
            cache.row = row
            whole = Cursor(cache, width, row)
            above = _with_ones(x[:, :, max(row - 1, 0) : max(row, 1)]) * float(row > 0)
            self.levels.u(pooled, record, self.u_in(above, whole), whole)
            record[self.ul_above] = self.ul_above(above, whole)
        cursor = Cursor(cache, width, row, column)
        left = _with_ones(x[:, :, row : row + 1, max(column - 1, 0) : max(column, 1)]) * float(column > 0)
        ul = cursor.read(record[self.ul_above]) + self.ul_left(left, cursor)
        parameters: Tensor = self.head(F.elu(self.levels.ul(pooled, record, ul, cursor)), cursor)
        return parameters


def concat_elu(x: Tensor) -> Tensor:
    """Compute the ELU of x and of -x, twice the channels: [B, 2 F, h, w]."""
    return F.elu(torch.cat([x, -x], 1))


def _with_ones(x: Tensor) -> Tensor:
    """Append a channel of ones, by which the image differs from what it is padded with."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)
