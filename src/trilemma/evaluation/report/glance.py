"""The three corners of the trilemma and who stands in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from trilemma.evaluation.report import show
from trilemma.evaluation.report.plots import coverage, distance
from trilemma.evaluation.report.tables.group import Group
from trilemma.evaluation.report.tables.quantities import latency, real, timed_on, timed_while_busy


@dataclass(frozen=True)
class Corner:
    """Best quality, most speed or best coverage: the words before the value, or why there is none."""

    title: str
    before: str
    group: Group | None = None
    value: float = 0.0
    shown: show.Show = show.plain
    real: float | None = None


def corners_of(groups: Sequence[Group]) -> Iterator[Corner]:
    """Yield the three, each with the setting that is best."""
    for title, number, shown, sign, before, name in (
        ("Best quality", distance, show.distance, 1, "FD ", "{FD}"),
        ("Most speed", latency, show.seconds, 1, "an image in ", ""),
        ("Best coverage", coverage, show.share, -1, "coverage ", "coverage"),
    ):
        found = [
            (sign * spread.mean, i)
            for i, group in enumerate(groups)
            if (spread := group.spread(number)) is not None and not (number is latency and _is_busy(group))
        ]
        if not found:
            busy = number is latency and any(map(_is_busy, groups))
            yield Corner(title, "not ranked, other programs held the cores" if busy else "not measured")
        elif number is latency and len({timed_on(row) for g in groups for row in g.rows} - {None}) > 1:
            yield Corner(title, "not comparable, times come from several machines")
        else:
            value, i = min(found)
            ceiling = groups[i].spread(real(name)) if name else None
            yield Corner(title, before, groups[i], sign * value, shown, None if ceiling is None else ceiling.mean)


def _is_busy(group: Group) -> bool:
    return any(timed_while_busy(row) for row in group.rows)
