"""Every row in full: how it was made, and all its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trilemma.evaluation.report.row import Row
from trilemma.evaluation.report.tables.group import Group
from trilemma.figures.html import Html, definition_rows, element

_TITLES = {
    "protocol": "Protocol",
    "metrics": "Numbers of the samples",
    "floor": "The same of held-out real images",
    "copycat": "The same of training images",
    "ledger": "What drawing takes",
    "likelihood": "Likelihood",
    "two_stage": "The two stages",
}


def anchors_of(groups: Sequence[Group]) -> dict[int, str]:
    """An identifier for each row, by `id(row)`, in the order of the table."""
    rows = [row for group in groups for row in group.rows]
    return {id(row): f"row-{i}" for i, row in enumerate(rows, start=1)}


def protocol_section(groups: Sequence[Group], anchors: Mapping[int, str]) -> Html:
    """One `<details>` a row."""
    return element("div", *(_details(group, row, anchors[id(row)]) for group in groups for row in group.rows))


def flat(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested containers, `a.b[0]`."""
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, (list, tuple)) and content:
        for i, value in enumerate(content):
            yield from flat(value, f"{prefix}[{i}]")
    else:
        yield prefix, "none" if content is None or content in ({}, [], ()) else str(content)


def _details(group: Group, row: Row, anchor: str) -> Html:
    number = anchor.rpartition("-")[2]
    title = f"[{number}] {group.title}, seed {row.protocol.get('seed')}"
    badge = element("span", "smoke", class_="badge") if row.is_smoke() else ""
    parts: list[Html] = []
    for name, content in row.content.items():
        if isinstance(content, (Mapping, list)) and content:
            parts += [element("h4", _TITLES.get(name, name)), definition_rows(flat(content))]
    loose = [(name, str(value)) for name, value in row.content.items() if not isinstance(value, (Mapping, list))]
    # The anchor lies within: a link to it opens what is closed.
    inside = element("div", definition_rows([("row", row.name), *loose]), *parts, id=anchor)
    return element("details", element("summary", title, Html(" ") if badge else "", badge), inside)
