"""The trilemma report: several models on one page, each number with the protocol that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trilemma.atomic import atomic_write_text
from trilemma.errors import UserError
from trilemma.evaluation.report.comparable import check_comparable
from trilemma.evaluation.report.frontier import by_settings
from trilemma.evaluation.report.gallery import neighbour_pairs, sample_grids, write_sheet
from trilemma.evaluation.report.glance import at_a_glance
from trilemma.evaluation.report.plots import REAL, trilemma_panels
from trilemma.evaluation.report.row import Entry, Row
from trilemma.evaluation.report.tables import words
from trilemma.evaluation.report.tables.group import Group, all_groups, groups_of
from trilemma.evaluation.report.tables.protocols import anchors_of, protocol_section
from trilemma.evaluation.report.tables.quantities import timed_on
from trilemma.evaluation.report.tables.table import main_table
from trilemma.evaluation.report.tables.two_stage import two_stage_table
from trilemma.figures.html import Html, element, page
from trilemma.figures.scatter import Panel, Series, draw_panels, legend_columns, legend_handles
from trilemma.figures.style import inline_svg, marker, plotting, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME, PLOTS, SAMPLES = "report.html", "trilemma", "samples.png"
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
    groups = all_groups(entries)
    anchors = anchors_of(groups)
    folder = Path(folder)
    sections = [
        _head(title, rows),
        at_a_glance(groups, anchors),
        element("section", element("h2", "Results"), *_results(groups, anchors, rows)),
        element("section", element("h2", "Quality, speed, coverage"), *_plots(entries, rows, folder)),
    ]
    if (stages := two_stage_table([entry for entry in entries if entry.rows])) is not None:
        sections.append(element("section", element("h2", "Where two stages lose"), *words.TWO_STAGE, stages))
    if grids := sample_grids(groups):
        sections.append(element("section", element("h2", "Samples"), words.SAMPLES, *grids))
        write_sheet(entries, folder / SAMPLES)
    if (pairs := neighbour_pairs(groups)) is not None:
        sections.append(element("section", element("h2", "Nearest training images"), words.NEIGHBOURS, pairs))
    protocols = protocol_section(groups, anchors)
    sections.append(element("section", element("h2", "Protocols"), words.PROTOCOLS, protocols))
    atomic_write_text(folder / NAME, page(title, sections))
    return folder / NAME


def _head(title: str, rows: Sequence[Row]) -> Html:
    first = rows[0].protocol
    common = (
        f"Data: {first.get('data')}. Samples per row: {first.get('num_images')}, compared with the {first.get('split')} split. "
        f"Features: {first.get('extractor')}."
    )
    parts = [element("h1", title), element("p", common, class_="muted"), words.SUMMARY]
    if any(row.is_smoke() for row in rows):
        parts.append(words.SMOKE)
    return element("header", *parts)


def _results(groups: Sequence[Group], anchors: Mapping[int, str], rows: Sequence[Row]) -> list[Html]:
    machines = sorted({machine for row in rows if (machine := timed_on(row)) is not None})
    notes = []
    if len(machines) > 1:
        notes.append(
            element(
                "p",
                f"Times come from {len(machines)} machines ({'; '.join(machines)}): compare those of one machine only.",
                class_="note",
            )
        )
    elif machines:
        notes.append(element("p", f"Times were taken on {machines[0]}.", class_="small"))
    floors = {number for row in rows if (number := row.number("floor", "num_images")) is not None}
    if any(number != rows[0].protocol.get("num_images") for number in floors):
        notes.append(
            element(
                "p",
                f"There are only {min(floors):.0f} held-out images: floor, ceiling, copycat and oracle were scored with as many, "
                "where fewer images make distances larger. Compare them with each other.",
                class_="note",
            )
        )
    return [words.TABLE, *notes, main_table(groups, anchors), words.COLUMNS]


def _plots(entries: Sequence[Entry], rows: Sequence[Row], folder: Path) -> list[Html]:
    lines = _lines(entries)
    panels = trilemma_panels(lines)
    if not panels:
        return [element("p", "No row has two numbers to plot against each other.", class_="muted")]
    untimed = sum(timed_on(row) is None for row in rows)
    parts = [words.PLOTS]
    if untimed:
        parts.append(
            element(
                "p", f"{untimed} of {len(rows)} rows were not timed: the plots over seconds lack them.", class_="small"
            )
        )
    with plotting():
        from matplotlib.figure import Figure

        drawings = []
        for i, panel in enumerate(panels):
            figure = Figure(figsize=_PANEL_INCHES, layout="constrained")
            draw_panels(figure, [(figure.subplots(), panel)])
            description = f"{panel.title}: {panel.y.label} over {panel.x.label}; the numbers are in the table above"
            drawings.append(element("figure", inline_svg(figure, f"plot{i}", description=description)))
        save_figure(_together(panels), folder / PLOTS)
    return [*parts, _legend(panels[0].series), element("div", *drawings, class_="plots")]


def _lines(entries: Sequence[Entry]) -> list[tuple[str, list[Group]]]:
    """A line for each model; one for each of its settings where it has several."""
    found = []
    for entry in entries:
        kinds = by_settings(groups_of(entry))
        found += [(entry.name if len(kinds) == 1 else f"{entry.name}: {kind}", groups) for kind, groups in kinds]
    return found


def _together(panels: Sequence[Panel]) -> Figure:
    """All panels as one figure, for documents."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    keys = legend_handles(panels[0].series, reference=REAL, front=True)
    width = _PANEL_INCHES[0] * columns
    num_columns = legend_columns(keys, width)
    height = _PANEL_INCHES[1] * num_rows + 0.3 + 0.25 * -(-len(keys) // num_columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(num_rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.legend(handles=keys, loc="outside lower center", ncols=num_columns, frameon=False)
    draw_panels(figure, list(zip(grid, panels, strict=False)))
    return figure


def _legend(series: Sequence[Series]) -> Html:
    items = [
        element("li", element("span", marker(one.index)[1], style=f"color:var(--c{one.index % 8})"), f" {one.name}")
        for one in series
    ]
    items += [element("li", f"- - - {REAL}"), element("li", "····· Pareto front")]
    return element("ul", *items, class_="legend")
