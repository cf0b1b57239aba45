"""A plot of measured settings: points with intervals, one line a series, the front as a staircase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trilemma.figures.labels import place_labels
from trilemma.figures.pareto import pareto_front
from trilemma.figures.style import INK, MUTED, PAGE, colour, log_ticks, marker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_LABEL_SIZE = 8.5
_PANEL_INCHES = (5.0, 4.1)
_LOG_FROM = 30.0  # a linear axis would press the smaller values together
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One measured setting; the intervals run from their lower to their upper end."""

    x: float
    y: float
    label: str = ""
    x_interval: Interval | None = None
    y_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Settings that belong together, drawn in one colour; `index` chooses it, in every plot of a page."""

    name: str
    index: int
    dots: tuple[Dot, ...]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One of the two axes.

    Attributes:
        label: With its unit.
        larger_is_better: The direction of the front.
        reference: A value to draw a dashed line at.
        share: Whether values lie in [0, 1], so that the axis needs no zero.
        log: Whether it is logarithmic; None where values that are far apart decide.
    """

    label: str
    larger_is_better: bool
    reference: float | None = None
    share: bool = False
    log: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One plot; points of which a coordinate is not finite are left out."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]

    def dots(self) -> list[Dot]:
        """Those that can be drawn."""
        return [dot for one in self.series for dot in _finite(one.dots)]

    def front(self) -> Panel:
        """The same plot with the points of its front alone; series without one are gone, the others keep their colours."""
        dots = self.dots()
        on = {id(dots[i]) for i in self.front_indices()}
        kept = [replace(one, dots=tuple(dot for dot in one.dots if id(dot) in on)) for one in self.series]
        return replace(self, series=tuple(one for one in kept if one.dots))

    def front_indices(self) -> list[int]:
        """Which of `dots` no other is better than in both directions."""
        points = [(dot.x, dot.y) for dot in self.dots()]
        return pareto_front(
            points, larger_x_is_better=self.x.larger_is_better, larger_y_is_better=self.y.larger_is_better
        )


def draw_panels(figure: Figure, panels: Sequence[tuple[Axes, Panel]]) -> None:
    """Draw on empty axes, then settle the figure's layout and put in the labels: whatever takes room must be there.

    Raises:
        ValueError: If a panel has nothing to draw.
    """
    for axes, panel in panels:
        _draw_panel(axes, panel)
    figure.draw_without_rendering()  # only now is it known where the points are
    figure.set_layout_engine("none")
    for axes, panel in panels:
        _draw_labels(axes, panel)


def draw_sheet(panels: Sequence[Panel], *, reference: str, num_columns: int, title: str | None = None) -> Figure:
    """Draw panels of the same series as one figure with one legend, for documents.

    Args:
        panels: At least one.
        reference: What the dashed lines are.
        num_columns: Of panels, at most.
        title: Of the legend.
    """
    from matplotlib.figure import Figure

    num_columns = min(num_columns, len(panels))
    num_rows = -(-len(panels) // num_columns)
    keys = legend_handles(series_in(panels), reference=reference)
    width = _PANEL_INCHES[0] * num_columns
    columns = legend_columns(keys, width)
    height = _PANEL_INCHES[1] * num_rows + 0.3 + 0.28 * -(-len(keys) // columns)
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.legend(handles=keys, loc="outside lower center", ncols=columns, frameon=False, title=title)
    draw_panels(figure, list(zip(grid, panels, strict=False)))
    return figure


def series_in(panels: Sequence[Panel]) -> list[Series]:
    """Every series that a panel has a point of, once."""
    found = {one.index: one for panel in panels for one in panel.series}
    return [found[index] for index in sorted(found)]


def legend_handles(series: Sequence[Series], *, reference: str | None) -> list[Line2D]:
    """What a legend of matplotlib shows for these panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour(one.index), marker=marker(one.index)[0], linewidth=1.4, label=one.name)
        for one in series
    ]
    if reference is not None:
        handles.append(Line2D([], [], color=MUTED, linestyle=(0, (5, 3)), linewidth=1.1, label=reference))
    return [*handles, Line2D([], [], color=INK, linestyle=":", linewidth=1.3, label="Pareto front")]


def legend_columns(handles: Sequence[Line2D], width: float) -> int:
    """How many columns of a legend fit a figure so many inches wide, as wide each as the longest label takes."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    return max(1, min(len(handles), int(width / (0.6 + 0.085 * longest))))


def _draw_panel(axes: Axes, panel: Panel) -> None:
    dots = panel.dots()
    if not dots:
        raise ValueError(f"no point of {panel.title!r} has both coordinates")
    axes.set_title(panel.title)
    _scale(axes, "x", panel.x, [value for dot in dots for value in (dot.x, *(dot.x_interval or ()))])
    _scale(axes, "y", panel.y, [value for dot in dots for value in (dot.y, *(dot.y_interval or ()))])
    for line, at in ((axes.axvline, panel.x.reference), (axes.axhline, panel.y.reference)):
        if at is not None:
            line(at, color=MUTED, linestyle=(0, (5, 3)), linewidth=1.1, zorder=1.5)
    points = [(dot.x, dot.y) for dot in dots]
    front = panel.front_indices()
    # Between two points of the front stands what both reach: the worse of each coordinate.
    steps = "steps-pre" if panel.x.larger_is_better else "steps-post"
    corners = zip(*(points[i] for i in front), strict=True)
    axes.plot(*corners, color=INK, linewidth=1.3, linestyle=":", zorder=1.8, drawstyle=steps)
    for one in panel.series:
        _draw_series(axes, one)


def _finite(dots: Sequence[Dot]) -> list[Dot]:
    return [dot for dot in dots if math.isfinite(dot.x) and math.isfinite(dot.y)]


def _scale(axes: Axes, which: str, axis: Axis, values: list[float]) -> None:
    finite = [v for v in values if math.isfinite(v)]
    if axis.reference is not None:
        finite.append(axis.reference)
    low, high = min(finite), max(finite)
    set_scale, set_limits, ticks, set_label = (
        (axes.set_xscale, axes.set_xlim, axes.xaxis, axes.set_xlabel)
        if which == "x"
        else (axes.set_yscale, axes.set_ylim, axes.yaxis, axes.set_ylabel)
    )
    set_label(axis.label)
    if low > 0 and (axis.log if axis.log is not None else high / low > _LOG_FROM):
        set_scale("log")
        span = max((high / low) ** 1.2, 3.0)  # of a factor of 3 at least, so that some ticks are in it
        centre = math.sqrt(low * high)
        set_limits(centre / math.sqrt(span), centre * math.sqrt(span))
        log_ticks(ticks, span)
        return
    if axis.share:
        pad = max(0.08 * (high - low), 0.02)
        set_limits(max(low - pad, -0.02), min(high + pad, 1.02) if high <= 1 else high + pad)
    else:
        set_limits(min(low, 0.0), high + 0.08 * (high - min(low, 0.0)) or 1.0)


def _draw_series(axes: Axes, series: Series) -> None:
    dots = _finite(series.dots)
    tone = colour(series.index)
    x, y = [dot.x for dot in dots], [dot.y for dot in dots]
    if len(dots) > 1:
        axes.plot(x, y, color=tone, linewidth=1.4, alpha=0.7, zorder=2)
    for dot in dots:
        if dot.x_interval is not None:
            axes.plot(dot.x_interval, (dot.y, dot.y), color=tone, linewidth=1.0, zorder=2.2)
        if dot.y_interval is not None:
            axes.plot((dot.x, dot.x), dot.y_interval, color=tone, linewidth=1.0, zorder=2.2)
    shape = marker(series.index)[0]
    axes.plot(x, y, color=tone, marker=shape, markersize=6.5, markeredgecolor=PAGE, linestyle="none", zorder=3)


def _draw_labels(axes: Axes, panel: Panel) -> None:
    from matplotlib.transforms import Affine2D

    to_points = Affine2D().scale(72.0 / axes.figure.dpi)
    dots = panel.dots()
    places = (axes.transData + to_points).transform([(dot.x, dot.y) for dot in dots])
    anchors = [(float(x), float(y)) for x, y in places]
    sizes = [(0.66 * _LABEL_SIZE * len(dot.label), 1.1 * _LABEL_SIZE if dot.label else 0.0) for dot in dots]
    crossed = [
        (line.get_transform() + to_points).transform_path(line.get_path())
        for line in axes.get_lines()
        if line.get_linestyle() in ("-", "--")
    ]
    boxes = place_labels(anchors, sizes, inside=axes.get_window_extent().transformed(to_points), crossed=crossed)
    tones = [colour(one.index) for one in panel.series for _ in _finite(one.dots)]
    for dot, (x, y), box, tone in zip(dots, anchors, boxes, tones, strict=True):
        if box is not None:
            centre = (box.x0 + box.x1) / 2 - x, (box.y0 + box.y1) / 2 - y
            axes.annotate(
                dot.label, (dot.x, dot.y), xytext=centre, textcoords="offset points", ha="center", va="center",
                fontsize=_LABEL_SIZE, color=tone, zorder=4,
            )  # fmt: skip
