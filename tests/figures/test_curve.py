import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages import check_page
from trilemma.figures.curve import Curve, curve_figure, thinned, ticks
from trilemma.figures.html import page

finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=1, max_size=300), st.integers(10, 60))
def test_thinned_curves_keep_their_extremes_and_order(values, num):
    points = [(float(i), value) for i, value in enumerate(values)]
    kept = thinned(points, num)
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert len(kept) <= num + 2
    assert {min(values), max(values)} <= {value for _, value in kept}


def test_thinned_curves_keep_their_gaps():
    points = [(float(i), math.nan if i == 50 else 1.0) for i in range(100)]
    assert sum(math.isnan(value) for _, value in thinned(points, 10)) == 1


@given(finite, st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within(low, width):
    found = ticks(low, low + width)
    assert 1 <= len(found) <= 7
    assert all(low - 1e-6 * width <= tick <= low + width * (1 + 1e-6) for tick in found)


def paths(figure):
    return re.findall(r' d="([^"]*)"', figure)


def test_a_curve_runs_over_the_whole_field():
    (path,) = paths(curve_figure("loss", [Curve("a", ((0, 0.0), (5, 1.0), (10, 2.0)))], x_label="step"))
    assert path == "M62.0 238.0h0L284.0 125.0L506.0 12.0"


def test_what_is_not_finite_interrupts_a_curve():
    (path,) = paths(curve_figure("loss", [Curve("a", ((0, 0.0), (1, 1.0), (2, math.nan), (3, 1.0)))], x_label="step"))
    assert re.sub(r"[^ML]", "", path) == "MLM"
    with pytest.raises(ValueError, match="no finite value"):
        curve_figure("loss", [Curve("a", ((0, math.inf),))], x_label="step")


def test_an_axis_over_orders_of_magnitude_is_logarithmic_and_says_so():
    figure = curve_figure("loss", [Curve("a", ((0, 100.0), (1, 10.0), (2, 1.0)))], x_label="step")
    assert paths(figure) == ["M62.0 12.0h0L284.0 125.0L506.0 238.0"]
    assert "logarithmic" in figure
    assert "logarithmic" not in curve_figure("loss", [Curve("a", ((0, 100.0), (1, 10.0)))], x_label="step")


def test_a_single_point_and_hostile_names_make_a_page():
    figure = curve_figure("<script>", [Curve('"<b>"', ((3, 1.0),))], x_label="&")
    read = check_page(page("t", [figure]))
    assert "<script>" in read.text
