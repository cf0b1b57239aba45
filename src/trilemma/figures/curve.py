"""Curves over the steps of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trilemma.figures.style import MUTED, colour, inline_svg, log_ticks, plotting

_INCHES = (5.2, 2.9)
_LOG_FROM = 30.0


@dataclass(frozen=True)
class Curve:
    """A named line; a value that is not finite interrupts it."""

    name: str
    points: tuple[tuple[float, float], ...]


def curve_svg(title: str, curves: Sequence[Curve], *, x_label: str, name: str, ordered: bool = False) -> str:
    """Draw one line a curve with a legend; far-apart positive values get a logarithmic axis.

    Args:
        title: What is drawn, for those who do not see it.
        curves: At least one.
        x_label: Of the axis.
        name: Of the element within its page.
        ordered: The curves are one quantity in rising order of something: shades of one colour, of which the legend names the ends.

    Raises:
        ValueError: If no point is finite.
    """
    values = np.array([value for curve in curves for _, value in curve.points])
    values = values[np.isfinite(values)]
    if not len(values):
        raise ValueError(f"{title!r} has no finite value to draw")
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=_INCHES)
        axes = figure.subplots()
        figure.subplots_adjust(left=0.13, right=0.97, bottom=0.17, top=0.9)
        for i, curve in enumerate(curves):
            x, y = np.array(curve.points, dtype=float).T
            drawn = np.isfinite(y)
            alone = drawn & ~np.append(False, drawn[:-1]) & ~np.append(drawn[1:], False)  # no line would show it
            named = not ordered or i in (0, len(curves) - 1)
            axes.plot(
                x,
                np.where(drawn, y, np.nan),
                color=colour(0 if ordered else i),
                alpha=(i + 2) / (len(curves) + 1) if ordered else None,
                label=curve.name if named else "_nolegend_",
                marker=".",
                markevery=alone,
            )
        if values.min() > 0 and values.max() > _LOG_FROM * values.min():
            axes.set_yscale("log")
            axes.set_title("logarithmic", loc="right", fontsize=9, fontweight="normal", color=MUTED)
            log_ticks(axes.yaxis, values.max() / values.min())
        axes.set_xlabel(x_label)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, borderaxespad=0)
        label = f"{title} over {x_label}: {', '.join(curve.name for curve in curves)}"
        return inline_svg(figure, name, description=label)
