"""Curves over the steps of a run, written as SVG by hand: a thousandth of what a plotting library takes to draw them.

They are drawn again and again while training goes on, which must not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trilemma.figures.html import Html, element
from trilemma.figures.stylesheet import SERIES_COLOURS

_WIDTH, _HEIGHT = 520, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 42
_MAX_POINTS = 400  # about one a pixel
_LOG_FROM = 30.0
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A named line; a value that is not finite interrupts it."""

    name: str
    points: tuple[tuple[float, float], ...]


def curve_figure(title: str, curves: Sequence[Curve], *, x_label: str) -> Html:
    """A figure with its title, a legend and one line a curve; far-apart positive values get a logarithmic axis.

    Raises:
        ValueError: If no point is finite.
    """
    drawn = [point for curve in curves for point in curve.points if math.isfinite(point[1])]
    if not drawn:
        raise ValueError(f"{title!r} has no finite value to draw")
    low, high = min(y for _, y in drawn), max(y for _, y in drawn)
    log = low > 0 and high / low > _LOG_FROM
    x_scale = _Scale(min(x for x, _ in drawn), max(x for x, _ in drawn), _LEFT, _WIDTH - _RIGHT, log=False)
    y_scale = _Scale(low, high, _HEIGHT - _BOTTOM, _TOP, log=log)
    parts = [*_grid(x_scale, y_scale), _text(x_label, (_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle")]
    for i, curve in enumerate(curves):
        parts.append(_path(thinned(curve.points), x_scale, y_scale, f"var(--c{i % len(SERIES_COLOURS)})"))
    label = f"{title} over {x_label}: {', '.join(curve.name for curve in curves)}"
    svg = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
    names = [
        element("li", element("span", "━", style=f"color:var(--c{i % len(SERIES_COLOURS)})"), f" {curve.name}")
        for i, curve in enumerate(curves)
    ]
    note = element("li", "logarithmic", class_="muted") if log else ""
    return element("figure", element("h3", title), element("ul", *names, note, class_="legend"), svg)


def thinned(points: Sequence[tuple[float, float]], max_points: int = _MAX_POINTS) -> Points:
    """Fewer points that look the same: of each stretch the least, the greatest and whatever is not finite.

    Args:
        points: By rising x.
        max_points: About how many are kept.
    """
    if len(points) <= max_points:
        return list(points)
    kept: Points = []
    size = math.ceil(2 * len(points) / max_points)
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        finite = [point for point in stretch if math.isfinite(point[1])]
        some = {min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])} if finite else set()
        gap = [point for point in stretch if not math.isfinite(point[1])][:1]
        kept += sorted([*some, *gap])
    return kept


def ticks(low: float, high: float, num: int = 5) -> list[float]:
    """Round values within a range: multiples of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    rough = (high - low) / num
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1.0, 2.0, 5.0, 10.0) if power * m >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


@dataclass(frozen=True)
class _Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def at(self, value: float) -> float:
        """The pixel of a value; the middle where there is only one."""
        low, high, here = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value)  # fmt: skip
        share = (here - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Values to mark."""
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1.0, 2.0, 5.0) if self.high / self.low < 1000 else (1.0,)
        marks = [f * 10.0**p for p in powers for f in factors]
        return [mark for mark in marks if self.low <= mark <= self.high]


def _grid(x_scale: _Scale, y_scale: _Scale) -> list[Html]:
    parts = []
    for value in y_scale.ticks():
        y = y_scale.at(value)
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(_text(f"{value:.4g}", _LEFT - 6, y + 4, "end"))
    for value in x_scale.ticks():
        x = x_scale.at(value)
        parts.append(_line(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(_text(f"{value:g}", x, _HEIGHT - _BOTTOM + 16, "middle"))
    return parts


def _line(x0: float, y0: float, x1: float, y1: float) -> Html:
    numbers = {"x1": x0, "y1": y0, "x2": x1, "y2": y1}
    return element("line", style="stroke:var(--line)", **{key: f"{value:.1f}" for key, value in numbers.items()})


def _text(text: str, x: float, y: float, anchor: str) -> Html:
    style = f"fill:var(--muted);font-size:12px;text-anchor:{anchor}"
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", style=style)


def _path(points: Points, x_scale: _Scale, y_scale: _Scale, tone: str) -> Html:
    steps, pen_down = [], False
    for x, y in points:
        if math.isfinite(y):
            steps.append(f"{'L' if pen_down else 'M'}{x_scale.at(x):.1f} {y_scale.at(y):.1f}")
        pen_down = math.isfinite(y)
    # A round end shows a lone point as a dot.
    steps = [f"{step}h0" if step[0] == "M" else step for step in steps]
    style = f"fill:none;stroke:{tone};stroke-width:1.5;stroke-linejoin:round;stroke-linecap:round"
    return element("path", d="".join(steps), style=style)
