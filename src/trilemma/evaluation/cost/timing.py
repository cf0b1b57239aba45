"""Seconds a draw takes on a device that may work behind the clock's back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Clock = Callable[[], float]
MIN_RUNS = 3


@dataclass(frozen=True)
class Stopwatch:
    """Times work on a device.

    Attributes:
        synchronize: Waits until the device has done all it was given.
        clock: Gives seconds.
    """

    synchronize: Callable[[], None]
    clock: Clock = time.perf_counter

    @staticmethod
    def of(device: torch.device | str) -> Stopwatch:
        """A stopwatch for a device."""
        device = torch.device(device)
        if device.type == "cpu":
            return Stopwatch(lambda: None)
        return Stopwatch(lambda: torch.accelerator.synchronize(device))

    def seconds(self, work: Callable[[], object]) -> float:
        """Time one call: from an idle device to an idle device."""
        self.synchronize()
        start = self.clock()
        work()
        self.synchronize()
        return self.clock() - start

    def repeat(self, work: Callable[[], object], *, num_warmup: int, num_runs: int, max_seconds: float) -> list[float]:
        """Times of several calls, the warm-up not among them.

        When `max_seconds` are over it stops early, though not before one warm-up call (where any is asked for) and
        `MIN_RUNS` timed ones, or `num_runs` if that is less.
        """
        spent = 0.0
        for number in range(num_warmup):
            if number > 0 and spent >= max_seconds:
                break
            spent += self.seconds(work)
        times: list[float] = []
        while len(times) < num_runs and (spent < max_seconds or len(times) < MIN_RUNS):
            times.append(self.seconds(work))
            spent += times[-1]
        return times


def quantile(times: list[float], q: float) -> float:
    """The q-quantile of some times, linear between them."""
    return float(torch.tensor(times, dtype=torch.float64).quantile(q))
