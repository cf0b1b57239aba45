import math
import re

import pytest
from matplotlib.cbook import STEP_LOOKUP_MAP

from pages import check_page, page
from trilemma.figures.scatter import Axis, Dot, Panel, Series, draw_panels, legend_columns, legend_handles
from trilemma.figures.style import colour, inline_svg, plotting, save_figure

DOTS = (
    Dot(x=0.01, y=3.0, label="5", y_interval=(2.5, 3.5)),
    Dot(x=0.1, y=2.0, label="10", x_interval=(0.05, 0.2)),
    Dot(x=1.0, y=math.nan, label="25"),
)


def panel(dots=DOTS, *, name="line", **options):
    fields = {
        "title": "Quality and speed",
        "x": Axis(label="seconds", larger_is_better=False, log=True),
        "y": Axis(label="FD", larger_is_better=False, reference=0.2),
        "series": (Series(name=name, index=0, dots=tuple(dots)),),
    }
    return Panel(**{**fields, **options})


def drawn(*panels):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    draw_panels(figure, list(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)))
    return figure


def test_points_and_axes_are_what_was_given():
    with plotting():
        figure = drawn(panel())
        (axes,) = figure.axes
        markers = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert [list(line.get_xydata().ravel()) for line in markers] == [[0.01, 3.0, 0.1, 2.0]]
        assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale(), axes.get_yscale()) == (
            "seconds", "FD", "log", "linear")  # fmt: skip
        assert [text.get_text() for text in axes.texts] == ["5", "10"]  # none for the point that is not drawn
        assert axes.get_ylim()[0] == 0
        texts = [tick.get_text() for tick in axes.get_xticklabels()]
        assert "0.01" in texts
        assert not any("$" in text for text in texts)


@pytest.mark.parametrize(("larger_x", "larger_y"), [(False, False), (False, True), (True, False), (True, True)])
def test_the_stair_goes_over_what_both_neighbours_reach(larger_x, larger_y):
    """Its corner is the worse of each coordinate."""
    x, y = (3.0, 1.0) if larger_x == larger_y else (1.0, 3.0), (1.0, 3.0)
    with plotting():
        axes = Axis(label="", larger_is_better=larger_x), Axis(label="", larger_is_better=larger_y)
        dots = [Dot(x=x[0], y=y[0]), Dot(x=x[1], y=y[1])]
        (drawn_axes,) = drawn(panel(dots, x=axes[0], y=axes[1])).axes
        (stair,) = [line for line in drawn_axes.get_lines() if line.get_linestyle() == ":"]
        corners = STEP_LOOKUP_MAP[stair.get_drawstyle()](*stair.get_data()).T
    worse = (min if larger_x else max)(x), (min if larger_y else max)(y)
    assert [tuple(corner) for corner in corners][1] == worse


def test_values_that_lie_far_apart_get_a_logarithmic_axis():
    with plotting():
        figure = drawn(panel([Dot(x=1, y=0.1), Dot(x=2, y=50)]), panel([Dot(x=1, y=-0.1), Dot(x=2, y=50)]))
        assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]


def test_a_single_point_and_equal_points_can_be_drawn():
    with plotting():
        figure = drawn(
            panel([Dot(x=1, y=1, label="a")]),
            panel([Dot(x=1, y=0, label="a")] * 3, y=Axis(label="", larger_is_better=True)),
        )
        for axes in figure.axes:
            assert all(low < high for low, high in (axes.get_xlim(), axes.get_ylim()))


def test_nothing_to_draw_is_refused():
    with plotting(), pytest.raises(ValueError, match="no point"):
        drawn(panel([Dot(x=math.inf, y=1)]))


@pytest.mark.parametrize("name", ["costs $x^{$", "<b>&", "_hidden", "100 %"])
def test_names_are_shown_as_they_are(name):
    with plotting():
        figure = drawn(panel(name=name, title=name))
        figure.legend(handles=legend_handles(panel(name=name).series, reference=None))
        text = inline_svg(figure, "a", description=name)
    read = check_page(page(text, title="t"))
    assert "".join(read.text).count(name) == 2


def test_figures_share_a_page_and_take_its_colours():
    with plotting():
        figure = drawn(panel())
        text = page("".join(inline_svg(figure, name, description=name) for name in ("a", "b")), title="t")
    check_page(text)
    body = text[text.index("<body>") :]
    assert "var(--c0)" in body
    assert not re.search(r"#[0-9a-f]{6}\b", body.replace('href="#', ""))


def test_files_are_the_same_each_time_and_settings_are_given_back(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    for name in ("one", "two"):
        with plotting():
            save_figure(drawn(panel()), tmp_path / name)
    assert dict(mpl.rcParams) == before
    for ending in ("png", "svg"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()
    assert colour(0) in (tmp_path / "one.svg").read_text()


@pytest.mark.parametrize("name", ["DDIM", "DDIM, guidance 2", "DDIM, classifier guidance 4 for t in [0, 0.95]"])
@pytest.mark.parametrize("width", [8.0, 13.0])
def test_a_legend_is_no_wider_than_its_figure(name, width):
    """Drawn and measured, in the style of the program."""
    from matplotlib.figure import Figure

    with plotting():
        handles = legend_handles(
            [Series(name=name, index=i, dots=()) for i in range(5)], reference="held-out real images"
        )
        columns = legend_columns(handles, width)
        figure = Figure(figsize=(width, 4))
        legend = figure.legend(handles=handles, ncols=columns, frameon=False)
        figure.canvas.draw()
        assert legend.get_window_extent().width / figure.dpi <= width
    assert columns > 1 or len(name) > 30
