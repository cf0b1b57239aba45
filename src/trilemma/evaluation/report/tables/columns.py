"""The columns of the tables: what each shows of a setting, and of the reference lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trilemma.evaluation.report import show
from trilemma.evaluation.report.row import Row
from trilemma.evaluation.report.tables import quantities as of
from trilemma.evaluation.report.tables.group import Group

_SIGNS = {"exact": "= ", "bound": "≤ ", "estimate": "~ "}


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
        name: Of the metric in a row's reference parts, for the lines of real and of training images.
        kind: What stands before the number and below it; None for rows that must not be averaged.
    """

    title: str
    unit: str
    number: of.Number
    shown: show.Show = show.plain
    spread_shown: show.Show = show.rounded
    stderr: of.Number | None = None
    below: tuple[tuple[str, of.Number, show.Show, str], ...] = ()
    name: str = ""
    kind: Callable[[Group], tuple[str, str] | None] = lambda group: ("", "")

    def reference(self, rows: Sequence[Row], part: str) -> list[float]:
        """The least and the greatest number of held-out ("floor") or training images ("copycat"); one where both are shown alike."""
        values = sorted(value for row in rows if (value := row.number(part, self.name)) is not None)
        return values[:1] if not values or self.shown(values[0]) == self.shown(values[-1]) else [values[0], values[-1]]


def _likelihood_kind(group: Group) -> tuple[str, str] | None:
    """The sign of what kind of number it is, and the unit; None for rows that mix them."""
    found = {(row.part("likelihood").get("kind"), row.part("likelihood").get("unit"))
             for row in group.rows if of.bits_per_dim(row) is not None}  # fmt: skip
    if len(found) != 1:
        return None
    ((kind, unit),) = found
    return _SIGNS.get(str(kind), f"{kind} "), f"bits/{unit}"


def _busy_sign(group: Group) -> tuple[str, str]:
    """The sign of times that were taken while other programs held the cores, and what it means."""
    return ("~ ", "on busy cores") if any(of.timed_while_busy(row) for row in group.rows) else ("", "")


def columns(rows: Sequence[Row]) -> list[Column]:
    """All columns of the main table, for rows of one extractor."""
    extractor = str(rows[0].protocol.get("extractor"))
    milliseconds, thousandths = show.scaled(1e-3), show.scaled(1e-3)
    rounded_thousandths = show.scaled(1e-3, show.rounded)
    giga, millions, mebibytes = show.scaled(1e9), show.scaled(1e6), show.scaled(2**20)
    shares = [
        Column(
            title=name.capitalize(), unit="↑", number=of.metric(name), shown=show.share, name=name,
            stderr=of.metric(f"{name}_stderr"), below=(("", of.ratio_to_real(name), show.share, " of real"),),
        )
        for name in ("precision", "recall", "coverage")
    ]  # fmt: skip
    return [
        Column(
            title="FD", unit=f"[{extractor}] ↓", number=of.metric("{FD}"), shown=show.distance, name="{FD}",
            stderr=of.metric("{FD_stderr}"), below=(("floor ", of.real("{FD}"), show.distance, ""),),
        ),
        Column(
            title="KID", unit=f"[{extractor}] ×10⁻³ ↓", number=of.metric("{KID}"), name="{KID}",
            shown=thousandths, spread_shown=rounded_thousandths,
            stderr=of.metric("{KID_stderr}"), below=(("floor ", of.real("{KID}"), thousandths, ""),),
        ),
        *shares,
        Column(title="Label accuracy", unit="↑", number=of.metric("label_accuracy"), shown=show.share, name="label_accuracy"),
        Column(title="Authenticity", unit="↑", number=of.metric("authenticity"), shown=show.share, name="authenticity"),
        Column(title="Likelihood", unit="bits, test ↓", number=of.bits_per_dim, kind=_likelihood_kind),
        Column(title="Calls", unit="per image ↓", number=of.calls_per_image, shown=show.short),
        Column(title="GFLOPs", unit="per image ↓", number=of.flops_per_image, shown=giga, spread_shown=giga),
        Column(
            title="Latency", unit="p50, p95, ms ↓", number=of.latency, shown=milliseconds, spread_shown=milliseconds,
            below=(("p95 ", of.latency_p95, milliseconds, ""),), kind=_busy_sign,
        ),
        Column(
            title="Images/s", unit="best batch ↑", number=of.images_per_second, shown=show.short,
            below=(("batch ", of.best_batch_size, show.short, ""),), kind=_busy_sign,
        ),
        Column(title="Parameters", unit="million, in use", number=of.num_parameters, shown=millions, spread_shown=millions),
        Column(title="Memory", unit="peak, MiB ↓", number=of.peak_bytes, shown=mebibytes, spread_shown=mebibytes),
    ]  # fmt: skip
