"""Samples and their nearest training images, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from trilemma.atomic import atomic_write
from trilemma.evaluation.report.row import Entry, Row
from trilemma.evaluation.report.tables.group import Group, groups_of
from trilemma.evaluation.report.tables.quantities import metric
from trilemma.figures.style import plotting

_SHEET_COLUMNS, _TILE_INCHES, _CHARACTERS = 4, 2.6, 44


def samples_by_seed(groups: Sequence[Group]) -> dict[str, list[tuple[Group, Row]]]:
    """The rows that have a grid of samples."""
    by_seed: dict[str, list[tuple[Group, Row]]] = {}
    for group in groups:
        for row in group.rows:
            if row.samples is not None:
                by_seed.setdefault(str(row.protocol.get("seed")), []).append((group, row))
    return by_seed


def write_sheet(entries: Sequence[Entry], path: Path) -> None:
    """Write one grid of each model as a PNG, of its setting with the least Frechet distance; nothing where there is none.

    Raises:
        UserError: If the file system refuses.
    """
    tiles = []
    for entry in entries:
        if (best := _best(entry)) is not None and best[1].samples is not None:
            with Image.open(best[1].samples) as opened:
                text = textwrap.fill(f"{entry.name}: {best[0].caption(best[1])}", _CHARACTERS)
                tiles.append((text, opened.convert("RGB")))
    if not tiles:
        return
    with plotting():
        from matplotlib.figure import Figure

        columns = min(_SHEET_COLUMNS, len(tiles))
        num_rows = -(-len(tiles) // columns)
        height = _TILE_INCHES * max(image.height / image.width for _, image in tiles) + 0.6
        figure = Figure(figsize=(columns * (_TILE_INCHES + 0.1), num_rows * height), layout="constrained")
        grid = figure.subplots(num_rows, columns, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, (text, image) in zip(grid, tiles, strict=False):
            axes.imshow(image)
            axes.set_title(text, fontsize=7, fontweight="normal")
        with atomic_write(path) as handle:
            figure.savefig(handle, format="png", dpi=140, metadata={"Software": None})


def _best(entry: Entry) -> tuple[Group, Row] | None:
    found = [
        (spread.mean, i, group, row)
        for i, group in enumerate(groups_of(entry))
        if (spread := group.spread(metric("{FD}"))) is not None
        for row in group.rows[:1]
        if row.samples is not None
    ]
    return min(found)[2:] if found else None
