import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trilemma.figures.pareto import pareto_front

coordinates = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)  # few values: many ties
directions = st.tuples(st.booleans(), st.booleans())


def dominates(a, b, larger_x, larger_y):
    x, y = (a[0] - b[0]) * (1 if larger_x else -1), (a[1] - b[1]) * (1 if larger_y else -1)
    return x >= 0 and y >= 0 and (x > 0 or y > 0)


@given(coordinates, directions)
def test_front_is_that_of_all_pairs(points, larger):
    found = pareto_front(points, larger_x_is_better=larger[0], larger_y_is_better=larger[1])
    expected = {i for i, b in enumerate(points) if not any(dominates(a, b, *larger) for a in points)}
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


def test_what_is_not_a_number_is_on_no_front():
    assert pareto_front([(math.nan, 0.0), (1.0, 1.0), (0.0, math.nan)]) == [1]
    assert pareto_front([]) == []


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinities_are_numbers(value):
    assert pareto_front([(0.0, value)]) == [0]
