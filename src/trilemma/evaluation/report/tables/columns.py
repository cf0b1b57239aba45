"""The columns of the main table: what each shows of a setting, and of the reference lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trilemma.evaluation.report import show
from trilemma.evaluation.report.row import Row
from trilemma.evaluation.report.tables.group import Group
from trilemma.evaluation.report.tables.quantities import (
    Number,
    best_batch_size,
    bits_per_dim,
    calls_per_image,
    copied,
    flops_per_image,
    images_per_second,
    latency,
    latency_p95,
    metric,
    num_parameters,
    peak_bytes,
    ratio_to_real,
    real,
    shown_distance,
)
from trilemma.figures.html import Html, element, join

MISSING = Html('<span class="muted" title="not measured">–</span>')
_SIGNS = {"exact": "=", "bound": "≤", "estimate": "~"}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        title: Its head.
        unit: Below the head; with the direction that is better.
        number: Of a row.
        shown: How it is written.
        spread_shown: How its standard error and deviation are written.
        stderr: Its standard error, where rows state one.
        below: Further numbers in small type: words before, number, how it is written, words after.
        name: Of the metric in a row's reference parts, for the lines of real and of copied images.
    """

    title: str
    unit: str
    number: Number
    shown: show.Show = show.plain
    spread_shown: show.Show = show.rounded
    stderr: Number | None = None
    below: tuple[tuple[str, Number, show.Show, str], ...] = field(default=())
    name: str | None = None

    def cell(self, group: Group) -> Html:
        """The number of a setting, its uncertainty and what stands below it."""
        found = group.spread(self.number)
        if found is None:
            return self._lone(group)
        small: list[Html] = []
        lines = [show.datum(found.mean, self.shown)]
        if found.sd:  # what is the same in all repetitions, a count, has no spread to show
            lines += [Html(" ± "), show.datum(found.sd, self.spread_shown)]
            if found.interval is not None:
                low, high = (show.datum(end, self.shown) for end in found.interval)
                small.append(join([low, " to ", high]))
        elif found.num == 1 and self.stderr is not None and (error := group.spread(self.stderr)) is not None:
            small.append(join(["se ", show.datum(error.mean, self.spread_shown)]))
        if found.num < group.num_repetitions:
            small.append(Html(f"{found.num} of {group.num_repetitions}"))
        for before, number, shown, after in self.below:
            if (extra := group.spread(number)) is not None:
                small.append(join([before, show.datum(extra.mean, shown), after]))
        return join([*lines, *(element("span", line, class_="small") for line in small)])

    def reference(self, rows: Sequence[Row], of: str) -> Html:
        """The number of held-out real images (`of` is "floor") or of training images ("copycat").

        Those of the rows differ by chance alone: their mean is shown, and how far they lie apart where that is seen.
        """
        if self.name is None:
            return Html("")
        number = (real if of == "floor" else copied)(self.name)
        values = [value for row in rows if (value := number(row)) is not None]
        if not values:
            return MISSING
        texts = {self.shown(value) for value in values}
        if len(texts) == 1:
            return show.datum(values[0], self.shown)
        return join([show.datum(min(values), self.shown), " to ", show.datum(max(values), self.shown)])

    def _lone(self, group: Group) -> Html:
        """A value that is not finite is shown as it is: it is a finding."""
        values = [value for row in group.rows if (value := self.number(row)) is not None]
        return show.datum(values[0], self.shown) if values else MISSING


def _rounded_thousandths(value: float) -> str:
    return show.rounded(1000 * value)


def distance(value: float) -> str:
    """Four digits, no less than zero."""
    return show.plain(shown_distance(value))


def columns(rows: Sequence[Row]) -> list[Column]:
    """All columns, for rows of one extractor."""
    extractor = str(rows[0].protocol.get("extractor"))
    shares = [
        Column(
            title=name.capitalize(), unit="↑", number=metric(name), shown=show.share, name=name,
            stderr=metric(f"{name}_stderr"), below=(("", ratio_to_real(name), show.share, " of real"),),
        )
        for name in ("precision", "recall", "coverage")
    ]  # fmt: skip
    return [
        Column(
            title="FD", unit=f"[{extractor}] ↓", number=metric("{FD}"), shown=distance, name="{FD}",
            stderr=metric("{FD_stderr}"), below=(("floor ", real("{FD}"), distance, ""),),
        ),
        Column(
            title="KID", unit=f"[{extractor}] ×10⁻³ ↓", number=metric("{KID}"), name="{KID}",
            shown=show.thousandths, spread_shown=_rounded_thousandths,
            stderr=metric("{KID_stderr}"), below=(("floor ", real("{KID}"), show.thousandths, ""),),
        ),
        *shares,
        Column(title="Label accuracy", unit="↑", number=metric("label_accuracy"), shown=show.share, name="label_accuracy"),
        Column(title="Authenticity", unit="↑", number=metric("authenticity"), shown=show.share, name="authenticity"),
        Column(title="Calls", unit="per image ↓", number=calls_per_image, shown=show.short),
        Column(title="GFLOPs", unit="per image ↓", number=flops_per_image, shown=show.giga, spread_shown=show.giga),
        Column(
            title="Latency", unit="p50, p95, ms ↓", number=latency, shown=show.milliseconds,
            spread_shown=show.milliseconds,
            below=(("p95 ", latency_p95, show.milliseconds, ""),),
        ),
        Column(
            title="Images/s", unit="best batch ↑", number=images_per_second, shown=show.short,
            below=(("batch ", best_batch_size, show.short, ""),),
        ),
        Column(title="Parameters", unit="million, in use", number=num_parameters, shown=show.millions, spread_shown=show.millions),
        Column(title="Memory", unit="peak, MiB ↓", number=peak_bytes, shown=show.mebibytes, spread_shown=show.mebibytes),
    ]  # fmt: skip


def likelihood_cell(group: Group) -> Html:
    """Bits a dimension, with the sign of what kind of number it is; rows that mix kinds or units are not averaged."""
    kinds = {
        (str(part.get("kind")), str(part.get("unit")))
        for row in group.rows
        if (part := row.part("likelihood")) and bits_per_dim(row) is not None
    }
    found = group.spread(bits_per_dim)
    if found is None or len(kinds) != 1:
        return MISSING
    ((kind, unit),) = kinds
    parts: list[str] = [f"{_SIGNS.get(kind, kind)} ", show.datum(found.mean, show.plain)]
    if found.sd:
        parts += [" ± ", show.datum(found.sd, show.rounded)]
    return join([*parts, element("span", f"bits/{unit}", class_="small")])
