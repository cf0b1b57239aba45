"""A run directory as one page: its curves, its newest pictures, its checkpoints and its settings."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from trilemma.callbacks.checkpoint import FOLDER as CHECKPOINTS
from trilemma.figures.curve import Curve, curve_figure
from trilemma.figures.html import Html, definition_rows, element, page, picture

METRICS = "metrics.csv"
_PICTURES = (
    ("samples", "Samples"),
    ("reconstructions", "Reconstructions"),
    ("reverse", "From noise to data"),
    ("denoise", "Data noised and denoised again"),
    ("loss_by_time", "Loss by time"),
)
_TEXTS = (("config.yaml", "Settings"), ("versions.txt", "Versions"))
_X = "step"
_NOT_DRAWN = (_X, "epoch")
_SPLITS = ("train", "val", "test")
_MAX_WIDTH = 900
Points = tuple[tuple[float, float], ...]


def run_page(run_dir: Path, *, status: str) -> str:
    """The page of a run; what the directory lacks, it leaves out.

    Args:
        run_dir: The directory.
        status: How far the run is, in words.

    Raises:
        OSError: If a file cannot be read.
    """
    title = "/".join(run_dir.resolve().parts[-3:])
    metrics = read_metrics(run_dir / METRICS)
    parts: list[Html] = [element("h1", title), element("p", status, class_="muted")]
    if metrics:
        parts += [element("h2", "Curves"), _curves(metrics), element("h2", "Values"), _values(metrics)]
    for folder, heading in _PICTURES:
        if found := sorted((run_dir / folder).glob("step-*.png")):
            step = found[-1].stem.removeprefix("step-").lstrip("0") or "0"
            image = picture(found[-1], alt=f"{heading} after batch {step}", max_width=_MAX_WIDTH)
            caption = element("figcaption", f"After batch {step}")
            parts += [element("h2", heading), element("figure", image, caption, style="max-width:50rem")]
    if checkpoints := list(_checkpoints(run_dir / CHECKPOINTS)):
        parts += [element("h2", "Checkpoints"), definition_rows(checkpoints)]
    for name, heading in _TEXTS:
        if (path := run_dir / name).is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            parts.append(element("details", element("summary", heading), element("div", element("pre", text))))
    return page(title, parts)


def read_metrics(path: Path) -> dict[str, Points]:
    """The numbers of a metrics file by name, each with its step; cells that are empty or no number are passed over.

    Of several rows of one step the later ones stand: a resumed run writes them again.
    """
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8", errors="replace")
    whole = text[: text.rfind("\n") + 1]  # what is being written may lack its end
    found: dict[str, dict[float, float]] = {}
    for row in csv.DictReader(io.StringIO(whole)):
        step = _number(row.get(_X))
        if step is None or not math.isfinite(step):
            continue
        for name, cell in row.items():
            if isinstance(name, str) and name not in _NOT_DRAWN and (value := _number(cell)) is not None:
                found.setdefault(name, {})[step] = value
    return {name: tuple(sorted(points.items())) for name, points in found.items()}


def _number(cell: object) -> float | None:
    try:
        return float(cell) if isinstance(cell, str) and cell else None
    except ValueError:
        return None


def _curves(metrics: dict[str, Points]) -> Html:
    """The same quantity of training and validation in one figure; first what is validated."""
    figures: dict[str, list[Curve]] = {}
    for name, points in metrics.items():
        if any(math.isfinite(value) for _, value in points):
            split, _, rest = name.partition("/")
            figures.setdefault(rest if split in _SPLITS and rest else name, []).append(Curve(name, points))
    validated = sorted(figures, key=lambda title: not any(curve.name.startswith("val/") for curve in figures[title]))
    drawn = [curve_figure(title, figures[title], x_label="optimiser step") for title in validated]
    return element("div", *drawn, class_="plots curves")


def _values(metrics: dict[str, Points]) -> Html:
    heads = [element("th", "Metric", scope="col", class_="name")]
    heads += [
        element("th", text, scope="col") for text in ("Last", "at step", "Least", "at step", "Greatest", "at step")
    ]
    rows = []
    for name, points in metrics.items():
        finite = [point for point in points if math.isfinite(point[1])] or [points[-1]]
        chosen = points[-1], min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])
        cells = [element("td", text) for step, value in chosen for text in (f"{value:.5g}", f"{step:g}")]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    table = element("table", element("thead", element("tr", *heads)), element("tbody", *rows))
    return element("div", table, class_="scroll", tabindex=0, role="region", aria_label="Values")


def _checkpoints(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.glob("*.ckpt")):
        if path.is_symlink():
            yield path.name, f"is {path.readlink()}"
        else:
            yield path.name, f"{path.stat().st_size / 2**20:.1f} MiB"
