import math

import numpy as np
import pytest

from trilemma.figures.loss_by_time import loss_by_time_picture
from trilemma.figures.style import colour


def rgb(text):
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def rows_of_newest(picture):
    """Heights at which pixels have the colour of the newest curve."""
    pixels = np.asarray(picture).astype(int)
    return np.nonzero((np.abs(pixels - rgb(colour(0))).sum(-1) < 12).any(1))[0]


def curve(*losses):
    return tuple(((i + 0.5) / len(losses), loss) for i, loss in enumerate(losses))


def test_the_newest_curve_is_drawn_strongly_whatever_the_order():
    a = np.asarray(loss_by_time_picture({10: curve(3, 2, 1), 200: curve(2, 1, 1)}))
    b = np.asarray(loss_by_time_picture({200: curve(2, 1, 1), 10: curve(3, 2, 1)}))
    assert (a == b).all()
    c = np.asarray(loss_by_time_picture({10: curve(2, 1, 1), 200: curve(3, 2, 1)}))
    assert (a != c).any()


def test_far_apart_values_get_a_logarithmic_axis():
    """The middle value 10 lies half-way between 1 and 100 on a logarithmic axis, and near the bottom on a linear one."""
    heights = {}
    for low, top in ((1.0, 100.0), (41.0, 100.0)):
        points = ((0.2, low), (0.5, 10.0 if low == 1 else 50.0), (0.8, top))
        pixels = np.asarray(loss_by_time_picture({1: points})).astype(int)
        near = np.abs(pixels - rgb(colour(0))).sum(-1) < 12
        left, right = np.nonzero(near.any(0))[0][[0, -1]]
        middle = np.nonzero(near[:, (left + right) // 2])[0].mean()
        rows = np.nonzero(near.any(1))[0]
        heights[low] = (rows[-1] - middle) / (rows[-1] - rows[0])
    assert heights[1.0] == pytest.approx(0.5, abs=0.05)
    assert heights[41.0] == pytest.approx(9 / 59, abs=0.05)


def test_values_that_are_not_finite_are_left_out():
    whole = loss_by_time_picture({1: curve(3, math.nan, 1), 2: curve(math.inf, 2, 1)})
    assert len(rows_of_newest(whole)) > 5
    with pytest.raises(ValueError, match="finite"):
        loss_by_time_picture({1: curve(1, 2), 2: curve(math.nan, math.inf)})
    with pytest.raises(ValueError, match="finite"):
        loss_by_time_picture({})
