"""The trilemma report: several models on one page, each number with the protocol that made it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trilemma.atomic import atomic_write_text
from trilemma.errors import UserError
from trilemma.evaluation.report.comparable import check_comparable
from trilemma.evaluation.report.frontier import by_settings
from trilemma.evaluation.report.gallery import samples_by_seed, write_sheet
from trilemma.evaluation.report.glance import corners_of
from trilemma.evaluation.report.plots import REAL, trilemma_panels
from trilemma.evaluation.report.render import ENVIRONMENT
from trilemma.evaluation.report.row import Entry
from trilemma.evaluation.report.tables.columns import columns
from trilemma.evaluation.report.tables.group import Group, groups_of
from trilemma.evaluation.report.tables.quantities import timed_on, timed_while_busy
from trilemma.evaluation.report.tables.two_stage import stage_columns, stages_of
from trilemma.figures.scatter import Panel, draw_panels, draw_sheet, series_in
from trilemma.figures.style import NUM_COLOURS, inline_svg, marker, plotting, save_figure

NAME, PLOTS, SAMPLES = "report.html", "trilemma", "samples.png"
MAX_POINTS = 12  # of a plot that can still be read with all of them
_PANEL_INCHES = (5.4, 4.2)


def write_report(entries: Sequence[Entry], folder: str | Path, *, title: str) -> Path:
    """Write `report.html`, which needs no other file; beside it the plots (`trilemma.png`, `.svg`) and `samples.png`.

    Args:
        entries: Models with their rows.
        folder: Where to.
        title: Of the page.

    Returns:
        Path of the page.

    Raises:
        UserError: If the rows are not comparable, two models have one name, or the file system refuses.
    """
    names = [entry.name for entry in entries]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two entries are called {twice[0]!r}: give each a name of its own")
    rows = [row for entry in entries for row in entry.rows]
    check_comparable(rows)
    folder = Path(folder)
    entries = [entry for entry in entries if entry.rows]
    groups = [group for entry in entries for group in groups_of(entry)]
    of_stages = stage_columns(rows[0].protocol.get("extractor"))
    text = ENVIRONMENT.get_template("report.html").render(
        title=title,
        protocol=rows[0].protocol,
        smoke=any(row.is_smoke() for row in rows),
        corners=list(corners_of(groups)),
        machines=sorted({machine for row in rows if (machine := timed_on(row)) is not None}),
        any_busy=any(map(timed_while_busy, rows)),
        floors=sorted({number for row in rows if (number := row.number("floor", "num_images")) is not None}),
        num_untimed=sum(timed_on(row) is None for row in rows),
        stage_columns=of_stages,
        stages=stages_of(entries, of_stages),
        seeds=samples_by_seed(groups),
        neighbours=[(group, row) for group in groups for row in group.rows if row.neighbours is not None],
        **results_of(groups),
        **_plots(entries, folder),
    )
    write_sheet(entries, folder / SAMPLES)
    atomic_write_text(folder / NAME, text)
    return folder / NAME


def results_of(groups: Sequence[Group]) -> dict[str, Any]:
    """Values of the main table; `number` counts the rows in its order, from 1."""
    rows = [row for group in groups for row in group.rows]
    numbers = {id(row): i for i, row in enumerate(rows, start=1)}
    return {
        "groups": groups,
        "rows": rows,
        "columns": columns(rows),
        "parts": {name for row in rows for name in row.content if row.part(name)},
        "number": lambda row: numbers[id(row)],
    }


def _plots(entries: Sequence[Entry], folder: Path) -> dict[str, Any]:
    """The points of each front alone, for pages and documents; all of them besides, where they are too many to be read."""
    panels = trilemma_panels(_lines(entries))
    if not panels:
        return {"plots": [], "legend": [], "all_plots": []}
    shown = [panel.front() for panel in panels] if max(len(panel.dots()) for panel in panels) > MAX_POINTS else panels
    with plotting():
        save_figure(draw_sheet(shown, reference=REAL, num_columns=2), folder / PLOTS)
        found = {"plots": _drawn(shown, "plot"), "legend": _legend(shown), "all_plots": []}
        if shown is not panels:
            found |= {"all_plots": _drawn(panels, "all"), "all_legend": _legend(panels)}
    return found


def _drawn(panels: Sequence[Panel], prefix: str) -> list[str]:
    from matplotlib.figure import Figure

    drawings = []
    for i, panel in enumerate(panels):
        figure = Figure(figsize=_PANEL_INCHES, layout="constrained")
        draw_panels(figure, [(figure.subplots(), panel)])
        description = f"{panel.title}: {panel.y.label} over {panel.x.label}; the numbers are in the table above"
        drawings.append(inline_svg(figure, f"{prefix}{i}", description=description))
    return drawings


def _legend(panels: Sequence[Panel]) -> list[tuple[str, str, int]]:
    return [(one.name, marker(one.index)[1], one.index % NUM_COLOURS) for one in series_in(panels)]


def _lines(entries: Sequence[Entry]) -> list[tuple[str, list[Group]]]:
    """A line for each model; one for each of its settings where it has several."""
    found = []
    for entry in entries:
        kinds = by_settings(groups_of(entry))
        found += [(entry.name if len(kinds) == 1 else f"{entry.name}: {kind}", groups) for kind, groups in kinds]
    return found
