import math

import pytest

from trilemma.evaluation.oracles.base import Check, mean_check


@pytest.mark.parametrize(
    ("expected", "found", "tolerance", "passed"),
    [(1.0, 1.0, 0.0, True), (1.0, 1.5, 0.5, True), (1.0, 0.4, 0.5, False), (0.0, math.nan, 9.0, False)],
)
def test_a_check_holds_within_its_tolerance(expected, found, tolerance, passed):
    assert Check("x", expected, found, tolerance).passed is passed


def test_a_mean_is_allowed_its_standard_errors():
    check = mean_check("x", 2.0, [1.0, 2.0, 6.0], exact_within=0.25)
    assert check.found == 3.0
    assert check.tolerance == pytest.approx(4.5 * math.sqrt(7 / 3) + 0.25)  # variance (4 + 1 + 9) / 2
