"""The three corners of the trilemma and who stands in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trilemma.evaluation.report import show
from trilemma.evaluation.report.plots import coverage, distance
from trilemma.evaluation.report.tables.columns import distance as shown_distance
from trilemma.evaluation.report.tables.group import Group
from trilemma.evaluation.report.tables.quantities import Number, latency, real, timed_on
from trilemma.figures.html import Html, element


def at_a_glance(groups: Sequence[Group], anchors: Mapping[int, str]) -> Html:
    """Best quality, most speed and best coverage, each with a link to its protocol."""
    corners: list[tuple[str, Number, show.Show, bool, str, str]] = [
        ("Best quality", distance, shown_distance, False, "FD ", "{FD}"),
        ("Most speed", latency, show.seconds, False, "an image in ", ""),
        ("Best coverage", coverage, show.share, True, "coverage ", "coverage"),
    ]
    items, winners = [], []
    for title, number, shown, larger, before, name in corners:
        found = [(spread.mean, i) for i, group in enumerate(groups) if (spread := group.spread(number)) is not None]
        if not found:
            items.append(element("li", element("strong", title), ": not measured"))
            continue
        value, i = max(found, key=lambda pair: (pair[0], -pair[1])) if larger else min(found)
        group = groups[i]
        ceiling = group.spread(real(name)) if name else None
        beside = "" if ceiling is None else f", where held-out real images have {shown(ceiling.mean)}"
        if number is latency and len({timed_on(row) for g in groups for row in g.rows} - {None}) > 1:
            items.append(element("li", element("strong", title), ": not comparable, times come from several machines"))
            continue
        anchor = anchors[id(group.rows[0])]
        link = element("a", group.title, href=f"#{anchor}")
        items.append(
            element("li", element("strong", title), ": ", link, f": {before}", show.datum(value, shown), beside)
        )
        winners.append(i)
    verdict = ""
    if len(winners) == len(corners) and len(groups) > 1:
        verdict = "One setting is best at all three." if len(set(winners)) == 1 else "No setting is best at all three."
    return element(
        "section", element("h2", "At a glance"), element("ul", *items), element("p", verdict) if verdict else Html("")
    )
