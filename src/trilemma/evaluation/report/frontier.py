"""The frontier of one checkpoint: what its samplers and guidances trade against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trilemma.errors import UserError
from trilemma.evaluation.report.comparable import check_comparable
from trilemma.evaluation.report.plots import (
    REAL,
    coverage,
    distance,
    distance_axis,
    precision,
    seconds_axis,
    series_of,
    share_axis,
    work_axis,
)
from trilemma.evaluation.report.row import Entry, Row
from trilemma.evaluation.report.tables.group import Group, groups_of
from trilemma.evaluation.report.tables.quantities import latency
from trilemma.evaluation.report.tables.settings import settings_key
from trilemma.figures.scatter import Panel, draw_sheet
from trilemma.figures.style import plotting, save_figure

NAME = "frontier"


def write_frontier(rows: Sequence[Row], folder: str | Path) -> Path:
    """Draw `frontier.png` and `frontier.svg`: quality against work, and precision against coverage.

    One line a setting, its points labelled with the steps; seconds where every row was timed.

    Args:
        rows: Of one checkpoint.
        folder: Where to.

    Returns:
        Path of the PNG.

    Raises:
        UserError: If the rows are not comparable, not of one checkpoint or hold nothing to draw, or the file system refuses.
    """
    check_comparable(rows)
    for row in rows:
        if row.protocol.get("checkpoint") != rows[0].protocol.get("checkpoint"):
            raise UserError(
                f"{rows[0].name} and {row.name} are of different checkpoints: draw one frontier each, or write a report of both"
            )
    lines = by_settings(groups_of(Entry("", tuple(rows))))
    panels = [panel for panel in _panels(rows, lines) if panel.dots()]
    if not panels:
        raise UserError(f"{rows[0].name} has no distance, precision or coverage to draw: run evaluate.py again")
    first = rows[0].protocol
    smoke = " (smoke: too few to compare models by)" if rows[0].is_smoke() else ""
    note = f"{first.get('model')} on {first.get('data')}, {first.get('num_images')} samples a point{smoke}"
    with plotting():
        figure = draw_sheet(panels, reference=REAL, num_columns=len(panels), title=note)
        return save_figure(figure, Path(folder) / NAME)


def by_settings(groups: Sequence[Group]) -> list[tuple[str, list[Group]]]:
    """Groups that differ in their steps alone, under their common settings."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(settings_key(group.rows[0], with_steps=False), []).append(group)
    return [(members[0].settings, members) for members in found.values()]


def _panels(rows: Sequence[Row], lines: list[tuple[str, list[Group]]]) -> list[Panel]:
    fd = distance_axis(rows)
    work, calls = work_axis(rows)
    panels = [Panel(title="Quality and work", x=work, y=fd, series=series_of(lines, calls, distance))]
    if all(latency(row) is not None for row in rows):
        panels.append(
            Panel(title="Quality and speed", x=seconds_axis(), y=fd, series=series_of(lines, latency, distance))
        )
    cover, exact = share_axis(rows, "coverage"), share_axis(rows, "precision")
    return [
        *panels,
        Panel(title="Precision and coverage", x=cover, y=exact, series=series_of(lines, coverage, precision)),
    ]
