"""Several measurements of one thing: mean, spread and an interval for the mean."""

from __future__ import annotations

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
    from scipy.stats import t  # half a second, which nothing else waits for

    half = float(t.ppf(0.975, num - 1)) * sd / num**0.5
    return Spread(mean, sd, num, (mean - half, mean + half))


def around_95(value: float, stderr: float) -> tuple[float, float]:
    """95 % interval of a value with this standard error, if it is normal."""
    return value - _NORMAL_975 * stderr, value + _NORMAL_975 * stderr
