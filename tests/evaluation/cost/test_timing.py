"""Latency and throughput on a device made up for the test, whose every duration is known."""

import pytest
import torch

from trilemma.evaluation.cost.latency import measure_latency
from trilemma.evaluation.cost.throughput import Rate, measure_throughput
from trilemma.evaluation.cost.timing import Stopwatch, quantile


class Device:
    """Returns at once from a draw, and works through it only while it is waited for, as an accelerator does."""

    def __init__(self, cost):
        self.cost = cost
        self.now = self.pending = 0.0
        self.drawn = []

    def draw(self, num):
        self.pending += self.cost(num, len(self.drawn))
        self.drawn.append(num)

    def synchronize(self):
        self.now += self.pending
        self.pending = 0.0

    @property
    def stopwatch(self):
        return Stopwatch(self.synchronize, lambda: self.now)


def test_latency_waits_for_the_device_and_leaves_the_warm_up_out():
    # Warm-up runs take 100 s each, run number r after them r seconds.
    device = Device(lambda num, run: 100.0 if run < 2 else run - 1.0)
    latency = measure_latency(device.draw, device.stopwatch, num_warmup=2, num_runs=21, max_seconds=1e9)
    assert latency.num_runs == 21
    assert (latency.p50_seconds, latency.p95_seconds) == (11.0, 20.0)
    assert device.drawn == [1] * 23


def test_work_left_from_before_is_not_charged():
    device = Device(lambda num, run: 1.0)
    device.pending = 50.0
    assert device.stopwatch.seconds(lambda: device.draw(1)) == 1.0


def test_quantiles_lie_linearly_between_times():
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([0.0, 10.0], 0.95) == pytest.approx(9.5, rel=1e-15)


@pytest.mark.parametrize(
    ("max_seconds", "num_draws"),
    [(100.0, 3 + 20), (10.0, 3 + 7), (2.0, 2 + 3), (0.0, 1 + 3)],
)
def test_latency_stops_when_its_time_is_over(max_seconds, num_draws):
    device = Device(lambda num, run: 1.0)
    latency = measure_latency(device.draw, device.stopwatch, max_seconds=max_seconds)
    assert len(device.drawn) == num_draws
    assert latency.p50_seconds == 1.0


def test_the_best_rate_is_found_and_every_size_is_told():
    # A fixed second a batch, until beyond 16 images the cost a batch is quadratic.
    device = Device(lambda num, run: 1.0 if num <= 16 else num**2 / 16)
    found = measure_throughput(device.draw, device.stopwatch, batch_sizes=[64, 1, 16, 4], max_seconds=1e9)
    assert (found.batch_size, found.images_per_second, found.stopped_by) == (16, 16.0, "end")
    assert found.tried == (Rate(1, 1.0), Rate(4, 4.0), Rate(16, 16.0), Rate(64, 0.25))
    assert device.drawn == [1] * 4 + [4] * 4 + [16] * 4 + [64] * 4


def test_the_median_of_the_runs_counts():
    device = Device(lambda num, run: [9.0, 2.0, 100.0, 1.0][run])
    assert measure_throughput(device.draw, device.stopwatch, batch_sizes=[1]).images_per_second == 0.5


def test_a_batch_that_would_exceed_the_time_is_not_begun():
    # 4 draws of one image take 4 s; 4 of four images would take 16 s, 4 of sixteen 64 s.
    device = Device(lambda num, run: float(num))
    found = measure_throughput(device.draw, device.stopwatch, batch_sizes=[1, 4, 16], max_seconds=50.0)
    assert (found.stopped_by, [rate.batch_size for rate in found.tried]) == ("time", [1, 4])
    assert device.now == 20.0


def test_the_first_batch_is_timed_even_without_time():
    device = Device(lambda num, run: 1.0)
    found = measure_throughput(device.draw, device.stopwatch, batch_sizes=[2, 4], max_seconds=0.0)
    assert (found.batch_size, found.images_per_second, found.stopped_by) == (2, 2.0, "time")


def test_the_search_ends_where_memory_does():
    device = Device(lambda num, run: 1.0)

    def draw(num):
        if num > 4:
            raise torch.OutOfMemoryError("too much")
        device.draw(num)

    found = measure_throughput(draw, device.stopwatch, batch_sizes=[1, 4, 16, 64])
    assert (found.batch_size, found.stopped_by) == (4, "memory")
    with pytest.raises(torch.OutOfMemoryError):
        measure_throughput(draw, device.stopwatch, batch_sizes=[16])


@pytest.mark.parametrize("batch_sizes", [[], [0, 4]])
def test_batch_sizes_are_checked(batch_sizes):
    device = Device(lambda num, run: 1.0)
    with pytest.raises(ValueError, match="at least 1"):
        measure_throughput(device.draw, device.stopwatch, batch_sizes=batch_sizes)
