import math
import re

import numpy as np
import pytest

from pages import check_page, page
from trilemma.figures.curve import Curve, curve_svg


def drawn(*points, title="loss", name="a"):
    return curve_svg(title, [Curve(name, points)], x_label="step", name="f")


def paths(svg):
    """The lines of the series, as the letters of their paths."""
    lines = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*var\(--c0\)[^"]*stroke-linecap: square', svg)
    return [re.sub(r"[^ML]", "", line) for line in lines]


def test_what_is_not_finite_interrupts_a_curve():
    line, key = paths(drawn((0, 0.0), (1, 1.0), (2, math.nan), (3, 1.0), (4, 2.0)))
    assert (line, key) == ("MLML", "MLL")
    with pytest.raises(ValueError, match="no finite value"):
        drawn((0, math.inf))


def test_a_point_between_gaps_is_a_dot():
    """And no other: a path of thousands of points has no markers."""
    apart, joined = drawn((0, 0.0), (1, math.nan), (2, 1.0), (3, math.nan)), drawn((0, 0.0), (1, 1.0))
    dots = [len(re.findall(r"<use [^>]*fill: var\(--c0\)", svg)) for svg in (apart, joined)]
    assert dots == [2 + 1, 0 + 1]  # and the one of the legend


def test_many_points_make_a_small_picture_that_keeps_its_extremes():
    values = np.random.default_rng(0).normal(size=100_000)
    values[50_000] = 40.0
    svg = drawn(*enumerate(values.tolist()))
    assert len(svg) < 60_000
    assert ">40<" in svg


def test_an_axis_over_orders_of_magnitude_is_logarithmic_and_says_so():
    assert ">logarithmic<" in drawn((0, 100.0), (1, 10.0), (2, 1.0))
    assert "logarithmic" not in drawn((0, 100.0), (1, 10.0))
    assert "logarithmic" not in drawn((0, 100.0), (1, 0.0))


def test_a_single_point_and_hostile_names_make_a_page():
    read = check_page(page("{{ x|safe }}", title="t", x=drawn((3, 1.0), title="<script>", name='"<b>"$x_{$')))
    assert '"<b>"$x_{$' in read.text
    assert "script" not in read.tags
