"""Several measurements of one thing: mean, spread and an interval for the mean."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_MIN_FOR_INTERVAL = 3
_NORMAL_975 = 1.959963984540054


@dataclass(frozen=True)
class Spread:
    """Of n measurements.

    Attributes:
        mean: Their mean.
        sd: Standard deviation (n - 1); None for one.
        num: Their number n.
        interval: 95 % interval of the mean by Student's t; None below three, where it says nothing of use.
    """

    mean: float
    sd: float | None
    num: int
    interval: tuple[float, float] | None


def spread(values: Sequence[float]) -> Spread:
    """Summarise.

    Raises:
        ValueError: If there are no values.
    """
    if not values:
        raise ValueError("there is nothing to summarise")
    num, mean = len(values), statistics.fmean(values)
    if num == 1:
        return Spread(values[0], None, 1, None)
    sd = statistics.stdev(values)
    if num < _MIN_FOR_INTERVAL:
        return Spread(mean, sd, num, None)
    half = student_975(num - 1) * sd / math.sqrt(num)
    return Spread(mean, sd, num, (mean - half, mean + half))


def around_95(value: float, stderr: float) -> tuple[float, float]:
    """95 % interval of a value with this standard error, if it is normal."""
    return value - _NORMAL_975 * stderr, value + _NORMAL_975 * stderr


def student_975(freedom: int) -> float:
    """97.5 % quantile of Student's t.

    With t = sqrt(v) tan(a), the mass between 0 and t is the integral of cos(a)^(v - 1), which Simpson's rule takes to
    ten digits; the quantile is found by halving.

    Args:
        freedom: Degrees of freedom v, at least 1.
    """
    log_norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)

    def mass(angle: float) -> float:
        num = 400
        step = angle / num
        values = [math.cos(i * step) ** (freedom - 1) for i in range(num + 1)]
        return (
            math.exp(log_norm) * step / 3 * (values[0] + 4 * sum(values[1::2]) + 2 * sum(values[2:-1:2]) + values[-1])
        )

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < 0.475 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
