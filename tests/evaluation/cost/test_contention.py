import time

import pytest

from trilemma.evaluation.cost import contention
from trilemma.evaluation.cost.contention import CoreWait


def test_waiting_is_what_all_threads_waited_over_what_they_ran_and_waited(monkeypatch):
    seen = iter([{"1": (10, 4), "2": (5, 0), "ends": (900, 900)}, {"1": (35, 14), "2": (5, 0), "begins": (5, 0)}])
    monkeypatch.setattr(contention, "_nanoseconds", lambda: next(seen))
    with CoreWait() as wait:
        pass
    assert wait.share == pytest.approx(10 / 40)


def test_a_system_that_does_not_tell_has_no_share(monkeypatch):
    monkeypatch.setattr(contention, "_nanoseconds", lambda: {})
    with CoreWait() as wait:
        pass
    assert wait.share is None


def test_this_system_tells_what_a_thread_ran():
    if not contention._nanoseconds():
        pytest.skip("no /proc/self/task/*/schedstat here")
    with CoreWait() as wait:
        start = time.thread_time()
        while time.thread_time() - start < 0.05:  # the numbers move with the scheduler's ticks, of up to 10 ms
            sum(range(1_000))
    assert 0.0 <= wait.share <= 1.0
