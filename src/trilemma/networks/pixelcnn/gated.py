"""The gated PixelCNN."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.networks.given import check_given
from trilemma.networks.pixelcnn.causal import Cache, CausalConv, Cursor, MaskType, shifted_down


class VerticalLayer(nn.Module):
    """A layer of the vertical stack, which sees the rows above, whole; and what it hands to the horizontal stack.

    Args:
        in_channels: Of the input.
        channels: Width F of the output.
        kernel_size: Height and width of the window, which ends in the output's own row.
        condition_dim: Width of the pooled condition; None where there is none.
    """

    def __init__(
        self, in_channels: int, channels: int, kernel_size: tuple[int, int], *, condition_dim: int | None
    ) -> None:
        super().__init__()
        self.conv = CausalConv(in_channels, 2 * channels, kernel_size, right=kernel_size[1] // 2)
        self.link = CausalConv(2 * channels, 2 * channels, (1, 1))
        self.condition = None if condition_dim is None else nn.Linear(condition_dim, 4 * channels, bias=False)

    def forward(self, v: Tensor, pooled: Tensor | None, cursor: Cursor | None = None) -> tuple[Tensor, Tensor]:
        """Transform v [B, in, h, w]; of the condition also the part that the horizontal layer's gate gets.

        Returns:
            The output [B, F, h, w], and the horizontal layer's input from above [B, 2 F, h, w].
        """
        x = self.conv(v, cursor)
        link: Tensor = self.link(x, cursor)
        if self.condition is not None:
            mine, other = self.condition(pooled)[:, :, None, None].chunk(2, 1)
            x, link = x + mine, link + other
        return gated(x), link


class HorizontalLayer(nn.Module):
    """A layer of the horizontal stack, which sees its own row to the left, and the vertical stack.

    Args:
        in_channels: Of the input.
        channels: Width F of the output.
        kernel_size: Width of the window, which ends in the output's own column.
        mask: "A" for the first layer, "B" for the others, which are residual.
        num_groups: See `CausalConv`.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, *, mask: MaskType, num_groups: int) -> None:
        super().__init__()
        self.is_residual = mask == "B"
        self.conv = CausalConv(
            in_channels, 2 * channels, (1, kernel_size), mask=mask, num_groups=num_groups, num_halves=2
        )
        self.out = CausalConv(channels, channels, (1, 1), mask="B", num_groups=num_groups)

    def forward(self, h: Tensor, link: Tensor, cursor: Cursor | None = None) -> Tensor:
        """Transform h [B, in, h, w], given the vertical layer's `link`, to [B, F, h, w]."""
        x: Tensor = self.out(gated(self.conv(h, cursor) + link), cursor)
        return h + x if self.is_residual else x


class GatedPixelCNN(nn.Module):
    """Predicts every token of a grid from those above it and to the left of it; the channels of a pixel come in order.

    Two stacks of convolutions without a blind spot: the vertical one sees all rows above, the horizontal one the row to the left and, layer
    by layer, the vertical one. Classes are embedded, or enter as levels in [-1, 1].

    Source: van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders", sections 2.1 to 2.3, figure 2. The last
    layers (ReLU, 1 x 1, ReLU, 1 x 1) and the masks of channels: van den Oord et al. 2016, "Pixel recurrent neural networks".

    Args:
        num_classes: K; None, of a codec of continuous values, is refused.
        code_shape: (h, w) or (h, w, C) of the tokens.
        channels: Width F of every layer; a multiple of C.
        depth: Number of layers of each stack.
        kernel_size: Of the windows of all layers but the first; odd.
        first_kernel_size: Of the first; odd.
        embedding_dim: Width of a class's embedding; None where classes are levels.
        head_channels: Width of the layer before the logits; a multiple of C.
        condition_dim: Width of the pooled condition; None where there is none.

    Raises:
        UserError: If an option is out of its range, or there are no classes.
    """

    levels: Tensor

    def __init__(
        self,
        *,
        num_classes: int | None,
        code_shape: Sequence[int],
        channels: int = 64,
        depth: int = 6,
        kernel_size: int = 3,
        first_kernel_size: int = 7,
        embedding_dim: int | None = None,
        head_channels: int = 128,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise UserError(
                "a gated PixelCNN predicts classes, and the codec gives continuous values: take codec=pixels_256, codec=pixels_2 or "
                "codec=vq, or model=pixelcnn_pp"
            )
        C = self.num_channels = math.prod(code_shape[2:])
        for name, size in (("kernel_size", kernel_size), ("first_kernel_size", first_kernel_size)):
            if size < 3 or size % 2 == 0:
                raise UserError(
                    f"network.{name}={size}: a window with a middle and a row above it is 3, 5, 7, ... wide"
                )
        for name, width in (("channels", channels), ("head_channels", head_channels)):
            if width < 1 or width % C:
                raise UserError(f"network.{name}={width}: must be a multiple of the {C} channels of a pixel")
        if depth < 1 or (embedding_dim is not None and embedding_dim < 1):
            raise UserError(f"network.depth={depth} network.embedding_dim={embedding_dim}: must be at least 1")
        self.num_classes, self.condition_dim = num_classes, condition_dim
        self.embedding = None if embedding_dim is None else nn.Embedding(C * num_classes, embedding_dim)
        self.register_buffer("levels", torch.linspace(-1.0, 1.0, num_classes), persistent=False)
        self.vertical, self.horizontal = nn.ModuleList(), nn.ModuleList()
        in_channels = C if embedding_dim is None else C * embedding_dim
        for i in range(depth):
            half = (kernel_size if i else first_kernel_size) // 2
            # The first layer's input is shifted down, so that its window lies above the output.
            tall = half + 1 if i else half
            self.vertical.append(
                VerticalLayer(in_channels, channels, (tall, 2 * half + 1), condition_dim=condition_dim)
            )
            mask: MaskType = "B" if i else "A"
            self.horizontal.append(HorizontalLayer(in_channels, channels, half + 1, mask=mask, num_groups=C))
            in_channels = channels
        self.head = nn.ModuleList(
            CausalConv(narrow, wide, (1, 1), mask="B", num_groups=C)
            for narrow, wide in ((channels, head_channels), (head_channels, C * num_classes))
        )

    def layer_blocks(self) -> list[nn.Module]:
        """List the blocks (see `HasBlocks`): the layers of both stacks."""
        return [layer for pair in zip(self.vertical, self.horizontal, strict=True) for layer in pair]

    def forward(
        self,
        tokens: Tensor,
        pooled: Tensor | None = None,
        *,
        cache: Cache | None = None,
        pixel: tuple[int, int] | None = None,
    ) -> Tensor:
        """Compute the logits of every token, or of the tokens of one pixel.

        Args:
            tokens: int64 [B, C, h, w].
            pooled: Condition [B, condition_dim]; given exactly where the network was built with one.
            cache: With `pixel`: what earlier calls have kept, to be added to. A new one for new images.
            pixel: Row and column to compute, all before which are in `tokens`; None for all. Pixels are asked for in raster order,
                each once for every channel, with the channels before that one in `tokens`.

        Returns:
            [B, C K, h, w], channel by channel; with `pixel` [B, C K, 1, 1].

        Raises:
            ValueError: If the condition is missing, or given to a network that was built without.
        """
        check_given("pooled", pooled, self.condition_dim, "condition_dim")
        if cache is not None and pixel is not None:
            logits: Tensor = self._pixel(tokens, pooled, cache, *pixel)
            return logits
        h = self._embedded(tokens)
        v = shifted_down(h)
        for vertical, horizontal in zip(self.vertical, self.horizontal, strict=True):
            v, link = vertical(v, pooled)
            h = horizontal(h, link)
        return self._logits(h)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _pixel(self, tokens: Tensor, pooled: Tensor | None, cache: Cache, row: int, column: int) -> Tensor:
        width = tokens.shape[3]
        if cache.row != row:
            cache.row = row
            above = self._embedded(tokens[:, :, max(row - 1, 0) : max(row, 1)])
            v = above if row else torch.zeros_like(above)
            for vertical in self.vertical:
                v, cache.features[vertical] = vertical(v, pooled, Cursor(cache, width, row))
        cursor = Cursor(cache, width, row, column)
        h = self._embedded(tokens[:, :, row : row + 1, max(column - 1, 0) : column + 1])
        if column:  # the pixel before was not known when it was the current one
            first = self.horizontal[0]
            assert isinstance(first, HorizontalLayer)
            first.conv.window(h[..., :1], Cursor(cache, width, row, column - 1))
            h = h[..., 1:]
        for vertical, horizontal in zip(self.vertical, self.horizontal, strict=True):
            h = horizontal(h, cursor.read(cache.features[vertical]), cursor)
        return self._logits(h, cursor)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Embed tokens [B, C, h, w] as groups of features, one group a channel."""
        if self.embedding is None:
            return self.levels[tokens]
        first = self.num_classes * torch.arange(self.num_channels, device=tokens.device)
        embedded: Tensor = self.embedding(tokens + first[:, None, None])
        return embedded.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def _logits(self, h: Tensor, cursor: Cursor | None = None) -> Tensor:
        for layer in self.head:
            h = layer(F.relu(h), cursor)
        return h


def gated(x: Tensor) -> Tensor:
    """Compute tanh(f) * sigmoid(g) of the halves f, g of x [B, 2 F, h, w] (equation 2)."""
    f, g = x.chunk(2, 1)
    return f.tanh() * g.sigmoid()
