"""How long one waits for a single image."""

from __future__ import annotations

from dataclasses import dataclass

from trilemma.evaluation.cost.timing import Stopwatch, quantile
from trilemma.evaluation.cost.work import Draw


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Seconds from the call to one finished float image, decoder included.

    Attributes:
        p50_seconds: Median.
        p95_seconds: 95th percentile, linear between runs.
        num_runs: Number of timed runs.
    """

    p50_seconds: float
    p95_seconds: float
    num_runs: int


def measure_latency(
    draw: Draw, stopwatch: Stopwatch, *, num_warmup: int = 3, num_runs: int = 20, max_seconds: float = 60.0
) -> Latency:
    """Time draws of one image.

    Args:
        draw: Draws images.
        stopwatch: Of the device it draws on.
        num_warmup: Runs before the clock counts.
        num_runs: Timed runs.
        max_seconds: When to stop early; see `Stopwatch.repeat`.
    """
    times = stopwatch.repeat(lambda: draw(1), num_warmup=num_warmup, num_runs=num_runs, max_seconds=max_seconds)
    return Latency(p50_seconds=quantile(times, 0.5), p95_seconds=quantile(times, 0.95), num_runs=len(times))
