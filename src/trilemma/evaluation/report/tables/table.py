"""The main table: a line for each setting, and three lines by which the protocol checks itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trilemma.evaluation.report.row import Row
from trilemma.evaluation.report.tables.columns import Column, columns, likelihood_cell
from trilemma.evaluation.report.tables.group import Group
from trilemma.figures.html import Html, breakable, element, join

_AFTER_LIKELIHOOD = "Calls"
_DISTANCES = ("FD", "KID")


def main_table(groups: Sequence[Group], anchors: Mapping[int, str]) -> Html:
    """The table.

    Args:
        groups: Settings, those of one model one after the other.
        anchors: Identifier of the protocol of each row, by `id(row)`.
    """
    rows = [row for group in groups for row in group.rows]
    shown = columns(rows)
    heads = [_head("Model", "sampler and guidance", class_="name"), _head("Steps", "")]
    for column in shown:
        if column.title == _AFTER_LIKELIHOOD:
            heads.append(_head("Likelihood", "bits, test ↓"))
        heads.append(_head(column.title, column.unit))
    body = [
        _line(group, shown, anchors, first=i == 0 or groups[i - 1].entry != group.entry)
        for i, group in enumerate(groups)
    ]
    references = [
        ("Floor", "held-out real images: as near as distances are expected to come", "floor", _DISTANCES),
        ("Ceiling", "the same images: as high as shares are expected to come", "floor", None),
        ("Copycat", "training images as if they were samples", "copycat", ()),
    ]
    lines = [
        _reference_line(title, words, of, only, shown, rows)
        for title, words, of, only in references
        if any(row.part(of) for row in rows)
    ]
    return element(
        "div",
        element("table", element("thead", element("tr", *heads)), element("tbody", *body, *lines)),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Results",
    )


def _head(title: str, unit: str, *, class_: str | None = None) -> Html:
    return element("th", title, element("span", unit, class_="small") if unit else "", scope="col", class_=class_)


def _line(group: Group, shown: Sequence[Column], anchors: Mapping[int, str], *, first: bool) -> Html:
    cells = [element("td", "–" if group.steps is None else str(group.steps))]
    for column in shown:
        if column.title == _AFTER_LIKELIHOOD:
            cells.append(element("td", likelihood_cell(group)))
        cells.append(element("td", column.cell(group)))
    badge = element("span", "smoke", class_="badge", title="too few images to compare models by")
    links = join(
        part
        for i, row in enumerate(group.rows)
        for part in (
            " " if i else "",
            element("a", f"[{anchors[id(row)].rpartition('-')[2]}]", href=f"#{anchors[id(row)]}"),
        )
    )
    name = element(
        "th",
        breakable(group.entry),
        Html(" ") if group.rows[0].is_smoke() else "",
        badge if group.rows[0].is_smoke() else "",
        element("span", group.settings, Html(" "), links, class_="small"),
        element("span", f"mean ± sd of {group.repetitions}", class_="small") if group.repetitions else "",
        scope="row",
    )
    return element("tr", name, *cells, class_="group" if first else None)


def _reference_line(
    title: str, words: str, of: str, only: tuple[str, ...] | None, shown: Sequence[Column], rows: Sequence[Row]
) -> Html:
    """`only` names the columns of a floor; None means all but those, and nothing means all."""
    cells = [element("td")]
    for column in shown:
        if column.title == _AFTER_LIKELIHOOD:
            cells.append(element("td"))
        wanted = (column.title not in _DISTANCES) if only is None else (not only or column.title in only)
        cells.append(element("td", column.reference(rows, of) if wanted else ""))
    head = element("th", title, element("span", words, class_="small"), scope="row")
    return element("tr", head, *cells, class_="reference")
