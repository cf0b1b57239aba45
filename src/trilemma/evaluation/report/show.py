"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Callable

from trilemma.figures.html import Html, element

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


def seconds(value: float) -> str:
    """In milliseconds below one second."""
    return f"{short(1000 * value)} ms" if value < 1 else f"{short(value)} s"


def milliseconds(value: float) -> str:
    """Without the unit."""
    return short(1000 * value)


def thousandths(value: float) -> str:
    """In units of 1e-3."""
    return f"{1000 * value:.3g}"


def rounded(value: float) -> str:
    """Two digits: a standard error or deviation from few measurements is known to no more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def giga(value: float) -> str:
    """In units of 1e9."""
    return short(value / 1e9)


def millions(value: float) -> str:
    """In units of 1e6."""
    return short(value / 1e6)


def mebibytes(value: float) -> str:
    """In units of 2^20."""
    return short(value / 2**20)


def datum(value: float, show: Show) -> Html:
    """A number for people, with all its digits for machines."""
    text = show(value) if math.isfinite(value) else str(value)
    return element("data", text, value=repr(value))
