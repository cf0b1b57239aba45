"""Samples and their nearest training images, to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trilemma.evaluation.report.row import Entry, Row
from trilemma.evaluation.report.tables.group import Group, groups_of
from trilemma.evaluation.report.tables.quantities import metric
from trilemma.figures.html import Html, element, picture
from trilemma.figures.images import save_png

_MAX_GRID_WIDTH = 800
_SHEET_COLUMNS, _SHEET_WIDTH, _SHEET_GAP, _FONT_SIZE = 4, 360, 16, 14


def sample_grids(groups: Sequence[Group]) -> list[Html]:
    """The grids, those of one seed side by side; empty where no row has one."""
    by_seed: dict[str, list[tuple[Group, Row]]] = {}
    for group in groups:
        for row in group.rows:
            if row.samples is not None:
                by_seed.setdefault(str(row.protocol.get("seed")), []).append((group, row))
    parts: list[Html] = []
    for seed, found in by_seed.items():
        if len(by_seed) > 1:
            parts.append(element("h3", f"Seed {seed}"))
        figures = [_figure(group, row, row.samples, "Samples of") for group, row in found if row.samples is not None]
        parts.append(element("div", *figures, class_="grids"))
    return parts


def neighbour_pairs(groups: Sequence[Group]) -> Html | None:
    """The pairs; None where no row has any."""
    figures = [
        _figure(group, row, row.neighbours, "Closest pairs of")
        for group in groups
        for row in group.rows
        if row.neighbours is not None
    ]
    return element("div", *figures, class_="grids pairs-grid") if figures else None


def write_sheet(entries: Sequence[Entry], path: Path) -> Path | None:
    """Write one grid of each model as a PNG: of its setting with the least Frechet distance.

    Returns:
        The path; None where there is no grid.

    Raises:
        UserError: If the file system refuses.
    """
    tiles = []
    for entry in entries:
        if (best := _best(entry)) is not None and best[1].samples is not None:
            group, row = best
            with Image.open(best[1].samples) as opened:
                image = opened.convert("RGB")
            height = round(image.height * _SHEET_WIDTH / image.width)
            text = f"{entry.name}\n{_caption(group, row)}"
            tiles.append((text, image.resize((_SHEET_WIDTH, height), Image.Resampling.LANCZOS)))
    if not tiles:
        return None
    save_png(_sheet(tiles), path)
    return path


def _figure(group: Group, row: Row, path: Path | None, what: str) -> Html:
    assert path is not None
    caption = _caption(group, row)
    image = picture(path, alt=f"{what} {group.entry}: {caption}", max_width=_MAX_GRID_WIDTH)
    return element("figure", image, element("figcaption", element("strong", group.entry), Html("<br>"), caption))


def _caption(group: Group, row: Row) -> str:
    seed = f"seed {row.protocol.get('seed')}"
    return f"{group.manner}, {seed}" if group.manner else seed


def _best(entry: Entry) -> tuple[Group, Row] | None:
    found = [
        (spread.mean, i, group, row)
        for i, group in enumerate(groups_of(entry))
        if (spread := group.spread(metric("{FD}"))) is not None
        for row in group.rows[:1]
        if row.samples is not None
    ]
    return min(found)[2:] if found else None


def _sheet(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    font = ImageFont.load_default(size=_FONT_SIZE)
    columns = min(_SHEET_COLUMNS, len(tiles))
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    words = [_wrapped(text, font) for text, _ in tiles]
    text_height = max(text.count("\n") + 1 for text in words) * int(1.4 * _FONT_SIZE)
    heights = [text_height + max(image.height for _, image in row) + _SHEET_GAP for row in rows]
    width = columns * (_SHEET_WIDTH + _SHEET_GAP) + _SHEET_GAP
    sheet = Image.new("RGB", (width, sum(heights) + _SHEET_GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = _SHEET_GAP
    for i, row in enumerate(rows):
        for j, (_, image) in enumerate(row):
            left = _SHEET_GAP + j * (_SHEET_WIDTH + _SHEET_GAP)
            draw.multiline_text((left, top), words[i * columns + j], fill="black", font=font, spacing=4)
            sheet.paste(image, (left, top + text_height))
        top += heights[i]
    return sheet


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """No line wider than a tile."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append("")
        for word in line.split(" "):
            joined = f"{lines[-1]} {word}".strip()
            if font.getlength(joined) <= _SHEET_WIDTH or not lines[-1]:
                lines[-1] = joined
            else:
                lines.append(word)
    return "\n".join(lines)
