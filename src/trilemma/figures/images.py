"""PIL pictures, grids, PNG files, animations and the field's `samples.npz`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trilemma.atomic import atomic_write
from trilemma.data.images import to_uint8

_BACKGROUND = 255
_FONT_SIZE = 12
_LONGEST_NAME = 24  # characters beside a row
_TILE_SIDE = 64  # small images are enlarged towards this many pixels


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert a batch, or a single image, to pictures.

    Args:
        images: Float in [-1, 1] or uint8, [B, C, H, W] or [C, H, W], with one channel (grey) or three (RGB).

    Returns:
        B pictures; one for a single image.

    Raises:
        ValueError: If the images have another shape.
    """
    batch = _as_uint8(images[None] if images.ndim == 3 else images)
    return [_picture(image) for image in batch]


def make_grid(
    images: Tensor,
    num_columns: int,
    *,
    padding: int = 2,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Lay out images side by side, row by row, on white.

    Args:
        images: Float in [-1, 1] or uint8, [N, C, H, W].
        num_columns: Images in a row.
        padding: Pixels around each image, after enlargement.
        scale: Whole factor that images are enlarged by (nearest neighbour); by default small ones are brought near 64
            pixels, by 4 at most.
        row_labels: Text at the left of each row.
        column_labels: Text above each column.

    Raises:
        ValueError: If there are no images, or the labels do not match the rows or columns.
    """
    batch = _as_uint8(images)
    if len(batch) == 0 or num_columns < 1 or padding < 0:
        raise ValueError(
            f"a grid needs images and columns, got {len(batch)} images, num_columns={num_columns}, {padding=}"
        )
    num_rows = -(-len(batch) // num_columns)
    for name, labels, expected in (("row", row_labels, num_rows), ("column", column_labels, num_columns)):
        if labels is not None and len(labels) != expected:
            raise ValueError(f"{len(labels)} {name} labels for {expected} {name}s")
    if scale is None:
        scale = max(1, min(4, _TILE_SIDE // max(batch.shape[2:])))
    batch = batch.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    _, channels, height, width = batch.shape
    step_y, step_x = height + padding, width + padding
    canvas = torch.full(
        (channels, num_rows * step_y + padding, num_columns * step_x + padding), _BACKGROUND, dtype=torch.uint8
    )
    for i, image in enumerate(batch):
        top, left = padding + i // num_columns * step_y, padding + i % num_columns * step_x
        canvas[:, top : top + height, left : left + width] = image
    grid = _picture(canvas)
    if row_labels is None and column_labels is None:
        return grid
    row_centres = [padding + r * step_y + height / 2 for r in range(num_rows)]
    column_centres = [padding + c * step_x + width / 2 for c in range(num_columns)]
    return _with_labels(grid, row_labels or [], column_labels or [], row_centres, column_centres)


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture as PNG, whole or not at all.

    Raises:
        UserError: If the file system refuses.
    """
    with atomic_write(path) as handle:
        image.save(handle, format="PNG")


def save_gif(frames: Sequence[Image.Image], path: str | Path, *, frame_ms: int = 80, hold_ms: int = 2000) -> None:
    """Write pictures as an animation that runs for ever, whole or not at all.

    Args:
        frames: Pictures of one size.
        path: The file.
        frame_ms: How long each is shown, in milliseconds; viewers round to hundredths of a second.
        hold_ms: How long the last one is.

    Raises:
        ValueError: If there is no frame.
        UserError: If the file system refuses.
    """
    if not frames:
        raise ValueError("an animation needs at least one frame")
    durations = [frame_ms] * (len(frames) - 1) + [hold_ms]
    with atomic_write(path) as handle:
        frames[0].save(
            handle, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=False
        )


def save_samples_npz(path: str | Path, images: Tensor, labels: Tensor | None = None) -> None:
    """Write samples in the convention of the field: `arr_0` uint8 [N, H, W, C], `arr_1` labels int64 [N] where given.

    Args:
        path: The file, whole or not at all.
        images: uint8 [N, C, H, W].
        labels: [N].

    Raises:
        ValueError: If the images are not uint8 [N, C, H, W], or there is not one label for each.
        UserError: If the file system refuses.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"samples are uint8 [N, C, H, W], got {images.dtype} {list(images.shape)}")
    if labels is not None and labels.shape != (len(images),):
        raise ValueError(f"labels {list(labels.shape)} for {len(images)} images")
    arrays = [images.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    if labels is not None:
        arrays.append(labels.to(torch.int64).cpu().numpy())
    with atomic_write(path) as handle:
        np.savez(handle, *arrays)


def _as_uint8(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"pictures are made of [B, C, H, W] with C = 1 or 3, got {list(images.shape)}")
    images = images.detach().cpu()
    return images if images.dtype == torch.uint8 else to_uint8(images)


def _picture(image: Tensor) -> Image.Image:
    """Convert uint8 [C, H, W] to a picture."""
    array = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _with_labels(
    grid: Image.Image,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    row_centres: Sequence[float],
    column_centres: Sequence[float],
) -> Image.Image:
    """Add margins with the labels at the left and above the grid."""
    font = ImageFont.load_default(size=_FONT_SIZE)
    gap = _FONT_SIZE // 2
    left = max((int(font.getlength(text)) + 2 * gap for text in row_labels), default=0)
    top = _FONT_SIZE + gap if column_labels else 0
    page = Image.new(grid.mode, (grid.width + left, grid.height + top), "white")
    page.paste(grid, (left, top))
    draw = ImageDraw.Draw(page)
    for text, y in zip(row_labels, row_centres, strict=False):
        draw.text((left - gap, top + y), text, fill="black", font=font, anchor="rm")
    for text, x in zip(column_labels, column_centres, strict=False):
        draw.text((left + x, top / 2), text, fill="black", font=font, anchor="mm")
    return page


def short_name(value: object) -> str:
    """Shorten a label or a caption to fit beside a row of a grid."""
    text = str(value)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
