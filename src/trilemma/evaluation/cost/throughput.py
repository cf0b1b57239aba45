"""How many images a second a device can draw, at the best of a few batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from trilemma.evaluation.cost.timing import Stopwatch, quantile
from trilemma.evaluation.cost.work import Draw

BATCH_SIZES = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Rate:
    """Images a second at one batch size, from the median time."""

    batch_size: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """The best rate, and how it was looked for.

    Attributes:
        images_per_second: The best rate.
        batch_size: Where it was found.
        tried: Every batch size that was timed, rising.
        stopped_by: What ended the search.
    """

    images_per_second: float
    batch_size: int
    tried: tuple[Rate, ...]
    stopped_by: Literal["end", "time", "memory"]


def measure_throughput(
    draw: Draw,
    stopwatch: Stopwatch,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_runs: int = 3,
    max_seconds: float = 60.0,
) -> Throughput:
    """Time ever larger batches, each after one warm-up run, until one no longer fits the memory or the time.

    A size is not begun if it would exceed the time left at the rate of the size before. The first is always timed.

    Args:
        draw: Draws images.
        stopwatch: Of the device it draws on.
        batch_sizes: Sizes to try. A family may split a batch above its own limit, which shows as a rate that no longer
            rises.
        num_runs: Timed runs at each size.
        max_seconds: For the whole search.

    Raises:
        ValueError: If there is no size, or one below 1.
        torch.OutOfMemoryError: If not even the smallest batch fits.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch sizes must be at least 1, got {list(batch_sizes)}")
    tried: list[Rate] = []
    stopped_by: Literal["end", "time", "memory"] = "end"
    start = stopwatch.clock()
    for size in sorted(set(batch_sizes)):
        left = max_seconds - (stopwatch.clock() - start)
        if tried and (1 + num_runs) * size / tried[-1].images_per_second > left:
            stopped_by = "time"
            break
        try:
            times = stopwatch.repeat(partial(draw, size), num_warmup=1, num_runs=num_runs, max_seconds=left)
        except torch.OutOfMemoryError:
            if not tried:
                raise
            stopped_by = "memory"
            break
        tried.append(Rate(size, size / quantile(times, 0.5)))
    if stopped_by == "memory" and torch.cuda.is_available():
        torch.cuda.empty_cache()
    best = max(tried, key=lambda rate: rate.images_per_second)
    return Throughput(
        images_per_second=best.images_per_second, batch_size=best.batch_size, tried=tuple(tried), stopped_by=stopped_by
    )
