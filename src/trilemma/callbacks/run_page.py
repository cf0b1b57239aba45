"""A run directory as one page: its curves, its newest pictures, its checkpoints and its settings."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path

from trilemma.callbacks.checkpoint import FOLDER as CHECKPOINTS
from trilemma.evaluation.report.render import ENVIRONMENT
from trilemma.figures.curve import Curve, curve_svg

METRICS = "metrics.csv"
_PICTURES = (
    ("samples", "Samples"),
    ("reconstructions", "Reconstructions"),
    ("reverse", "From noise to data"),
    ("denoise", "Data noised and denoised again"),
    ("loss_by_time", "Loss by time"),
)
_TEXTS = (("config.yaml", "Settings"), ("commands.txt", "Commands"), ("versions.txt", "Versions"))
_BY_TIME = re.compile(r"(?P<quantity>.*)_t(?P<tenth>\d\d)")
_X = "step"
_NOT_DRAWN = (_X, "epoch")
_SPLITS = ("train", "val", "test")
Points = tuple[tuple[float, float], ...]


def run_page(run_dir: Path, *, status: str, monitor: tuple[str, str] | None = None) -> str:
    """The page of a run; what the directory lacks, it leaves out.

    Args:
        run_dir: The directory.
        status: How far the run is, in words.
        monitor: The metric that says which checkpoint is best, and whether "min" or "max" is.

    Raises:
        OSError: If a file cannot be read.
    """
    values = read_metrics(run_dir / METRICS)
    return ENVIRONMENT.get_template("run.html").render(
        title="/".join(run_dir.resolve().parts[-3:]),
        status=status,
        headline=_headline(values, monitor),
        command=_last_command(run_dir),
        figures=_curves(values),
        values={name: _extremes(points) for name, points in values.items()},
        pictures=list(_pictures(run_dir)),
        checkpoints=[(path.name, _size(path)) for path in sorted((run_dir / CHECKPOINTS).glob("*.ckpt"))],
        texts=[
            (heading, path.read_text(encoding="utf-8", errors="replace"))
            for name, heading in _TEXTS
            if (path := run_dir / name).is_file()
        ],
    )


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


def _curves(metrics: dict[str, Points]) -> dict[str, str]:
    """The same quantity of training and validation in one figure, and that of all times in one; first what is validated."""
    figures: dict[str, list[Curve]] = {}
    validated, by_time = set(), set()
    for name, points in metrics.items():
        if not any(math.isfinite(value) for _, value in points):
            continue
        split, _, rest = name.partition("/")
        title = rest if split in _SPLITS and rest else name
        label = name
        if found := _BY_TIME.fullmatch(title):
            title, tenth = f"{found['quantity']} by time", int(found["tenth"])
            label = f"t in ({tenth / 10:.1f}, {(tenth + 1) / 10:.1f}]"
            by_time.add(title)
        figures.setdefault(title, []).append(Curve(label, points))
        if split == "val":
            validated.add(title)
    ordered = sorted(figures, key=lambda title: title not in validated)
    return {
        title: curve_svg(title, figures[title], x_label="optimiser step", name=f"curve{i}", ordered=title in by_time)
        for i, title in enumerate(ordered)
    }


def _headline(metrics: dict[str, Points], monitor: tuple[str, str] | None) -> tuple[str, float, float, float] | None:
    """Name, best value, its step and last value of the monitored metric."""
    points = [] if monitor is None else [p for p in metrics.get(monitor[0], ()) if math.isfinite(p[1])]
    if monitor is None or not points:
        return None
    step, best = (min if monitor[1] == "min" else max)(points, key=lambda point: point[1])
    return monitor[0], best, step, points[-1][1]


def _last_command(run_dir: Path) -> str | None:
    path = run_dir / "commands.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return lines[-1] if lines else None


def _extremes(points: Points) -> tuple[tuple[float, float], ...]:
    """The last point, and those of the least and the greatest value."""
    finite = [point for point in points if math.isfinite(point[1])] or [points[-1]]
    return points[-1], min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])


def _pictures(run_dir: Path) -> Iterator[tuple[str, str, Path]]:
    for folder, heading in _PICTURES:
        if found := sorted((run_dir / folder).glob("step-*.png")):
            yield heading, found[-1].stem.removeprefix("step-").lstrip("0") or "0", found[-1]


def _size(path: Path) -> str:
    return f"is {path.readlink()}" if path.is_symlink() else f"{path.stat().st_size / 2**20:.1f} MiB"
