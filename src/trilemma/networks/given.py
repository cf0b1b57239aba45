"""Check that a network is called with the conditions that it was built for."""

from __future__ import annotations

from torch import Tensor


def check_given(name: str, value: Tensor | None, width: int | None, option: str) -> None:
    """Raise ValueError unless a condition is given exactly where the network was built with one."""
    if (value is None) != (width is None):
        state = "is missing" if value is None else "was given"
        raise ValueError(f"`{name}` {state}, but the network was built with {option}={width}")
