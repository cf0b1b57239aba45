"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Callable

Show = Callable[[float], str]


def plain(value: float) -> str:
    """Four digits."""
    return f"{value:.4g}"


def short(value: float) -> str:
    """Three digits, without an exponent where that is readable."""
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.3g}"


def share(value: float) -> str:
    """Three decimals: shares are known to no more."""
    return f"{value:.3f}"


def rounded(value: float) -> str:
    """Two digits: a standard error or deviation from few measurements is known to no more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def distance(value: float) -> str:
    """Four digits, no less than zero: rounding leaves the distance of equal sets a little below."""
    return plain(max(value, 0.0))


def seconds(value: float) -> str:
    """In milliseconds below one second."""
    return f"{short(1000 * value)} ms" if value < 1 else f"{short(value)} s"


def scaled(unit: float, show: Show = short) -> Show:
    """In this unit, without its name."""
    return lambda value: show(value / unit)
