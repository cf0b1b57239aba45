"""Timing that a noisy machine cannot fool easily: interleaved rounds, medians, ratios within a round."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch loads

import statistics
import time
from collections.abc import Callable


def interleaved(functions: dict[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of every function in every round; the functions take turns, so a busy neighbour hits all of them."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - begin)
    return times


def row(name: str, times: dict[str, list[float]], ours: str, floor: str) -> str:
    """A table row: medians in ms, the median of the ratios within rounds, and the overhead in ms."""
    ratio = statistics.median(a / b for a, b in zip(times[ours], times[floor], strict=True))
    overhead = statistics.median(a - b for a, b in zip(times[ours], times[floor], strict=True)) * 1e3
    a, b = (statistics.median(times[k]) * 1e3 for k in (ours, floor))
    return f"| {name} | {a:.2f} | {b:.2f} | {ratio:.3f} | {overhead:+.2f} |"


HEADER = "| what | ours, ms | floor, ms | ratio (median) | overhead, ms (median) |\n|---|---|---|---|---|"
