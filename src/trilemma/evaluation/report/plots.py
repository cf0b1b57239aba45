"""What the report and the frontier plot, as panels."""

from __future__ import annotations

from collections.abc import Sequence

from trilemma.evaluation.report.row import Row, finite
from trilemma.evaluation.report.tables.group import Group
from trilemma.evaluation.report.tables.quantities import (
    Number,
    calls_per_image,
    latency,
    metric,
    real,
)
from trilemma.figures.scatter import Axis, Dot, Panel, Series

REAL = "held-out real images"
_SECONDS = "seconds for one image (less is better)"


def distance_axis(rows: Sequence[Row]) -> Axis:
    """The Frechet distance, with its floor."""
    name = f"FD[{rows[0].protocol.get('extractor')}] (less is better)"
    floor = reference(rows, "{FD}")
    return Axis(label=name, larger_is_better=False, reference=None if floor is None else max(floor, 0.0))


def share_axis(rows: Sequence[Row], name: str) -> Axis:
    """Precision, recall or coverage, with its ceiling."""
    return Axis(label=f"{name} (more is better)", larger_is_better=True, reference=reference(rows, name), share=True)


def seconds_axis() -> Axis:
    """The latency."""
    return Axis(label=_SECONDS, larger_is_better=False, log=True)


def work_axis(rows: Sequence[Row]) -> tuple[Axis, Number]:
    """Function evaluations; where a row has no ledger, the steps of the samplers, under their own name."""
    if all(calls_per_image(row) is not None for row in rows):
        label = "function evaluations per image (fewer is better)"
        return Axis(label=label, larger_is_better=False, log=True), calls_per_image
    label = "sampler steps, guidance not counted (fewer is better)"
    return Axis(label=label, larger_is_better=False, log=True), lambda row: row.number(
        "protocol", "sampler", "num_steps"
    )


def reference(rows: Sequence[Row], name: str) -> float | None:
    """What held-out real images score: the mean over the rows, whose floors differ by chance alone."""
    values = [value for row in rows if (value := real(name)(row)) is not None and finite(value)]
    return sum(values) / len(values) if values else None


def dots(groups: Sequence[Group], x: Number, y: Number) -> tuple[Dot, ...]:
    """A point for each setting that has both numbers, labelled with its steps."""
    found = []
    for group in groups:
        across, up = group.spread(x), group.spread(y)
        if across is None or up is None:
            continue
        found.append(
            Dot(
                x=across.mean,
                y=up.mean,
                label="" if group.steps is None else str(group.steps),
                x_interval=group.interval(x, _stderr(x)),
                y_interval=group.interval(y, _stderr(y)),
            )
        )
    return tuple(found)


def distance(row: Row) -> float | None:
    """The Frechet distance, no less than zero."""
    value = metric("{FD}")(row)
    return None if value is None else max(value, 0.0)


precision, recall, coverage = metric("precision"), metric("recall"), metric("coverage")
_ERRORS: dict[Number, Number] = {
    distance: metric("{FD_stderr}"),
    precision: metric("precision_stderr"),
    recall: metric("recall_stderr"),
    coverage: metric("coverage_stderr"),
}


def trilemma_panels(series_groups: Sequence[tuple[str, Sequence[Group]]]) -> list[Panel]:
    """Quality against speed, coverage against speed, and quality against coverage, twice.

    Args:
        series_groups: Name and settings of each series; a series keeps its colour in all panels.

    Returns:
        Those for which there is a point to draw.
    """
    rows = [row for _, groups in series_groups for group in groups for row in group.rows]
    seconds, fd, cover = seconds_axis(), distance_axis(rows), share_axis(rows, "coverage")
    wanted: list[tuple[str, Axis, Number, Axis, Number]] = [
        ("Quality and speed", seconds, latency, fd, distance),
        ("Coverage and speed", seconds, latency, cover, coverage),
        ("Quality and coverage", cover, coverage, fd, distance),
        ("Precision and coverage", cover, coverage, share_axis(rows, "precision"), precision),
    ]
    panels = [
        Panel(title=title, x=x_axis, y=y_axis, series=series_of(series_groups, x, y))
        for title, x_axis, x, y_axis, y in wanted
    ]
    return [panel for panel in panels if panel.dots()]


def series_of(series_groups: Sequence[tuple[str, Sequence[Group]]], x: Number, y: Number) -> tuple[Series, ...]:
    """The series of one panel."""
    return tuple(Series(name=name, index=i, dots=dots(groups, x, y)) for i, (name, groups) in enumerate(series_groups))


def _stderr(number: Number) -> Number:
    return _ERRORS.get(number, lambda row: None)
