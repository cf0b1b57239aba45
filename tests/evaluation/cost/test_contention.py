import pytest

from trilemma.evaluation.cost import contention
from trilemma.evaluation.cost.contention import CoreWait


def test_waiting_is_what_all_threads_waited_over_what_they_ran_and_waited(monkeypatch):
    sums = iter([(10, 4), (40, 14)])
    monkeypatch.setattr(contention, "_nanoseconds", lambda: next(sums))
    with CoreWait() as wait:
        pass
    assert wait.share == pytest.approx(10 / 40)


def test_a_system_that_does_not_tell_has_no_share(monkeypatch):
    monkeypatch.setattr(contention, "_nanoseconds", lambda: None)
    with CoreWait() as wait:
        pass
    assert wait.share is None


def test_this_system_tells_what_a_thread_ran():
    if contention._nanoseconds() is None:
        pytest.skip("no /proc/self/task/*/schedstat here")
    with CoreWait() as wait:
        sum(range(200_000))
    assert 0.0 <= wait.share <= 1.0
