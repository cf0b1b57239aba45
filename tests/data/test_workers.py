"""Batches made ahead by processes are the batches made on the spot, whatever happens to the processes."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch

from trilemma.data.loader import BatchStream, EvalLoader
from trilemma.data.workers import Workers, num_bytes
from trilemma.errors import TrainingError, UserError

SIZE = num_bytes(((2, 3), torch.float32), ((2,), torch.int64))


def make(number):
    return {"x": torch.full((2, 3), float(number)), "n": torch.tensor([number, os.getpid()]), "s": [str(number)]}


def equal(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype if isinstance(a[k], torch.Tensor) else a[k] == b[k]
        for k in a
    )


def alive(pid):
    """Whether a process runs; one that ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def workers():
    made = []

    def start(function=make, num_workers=2, size=SIZE):
        made.append(Workers(function, num_workers, size))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.mark.parametrize("num_workers", [1, 2, 3])
@pytest.mark.parametrize("num", [0, 1, 2, 5, 17])
def test_things_come_in_the_order_they_were_asked_for(workers, num_workers, num):
    numbers = [(7 * i) % 23 for i in range(num)]
    seen = [
        (thing["n"][0].item(), thing["x"][0, 0].item(), thing["s"])
        for thing in workers(num_workers=num_workers).made(numbers)
    ]
    assert seen == [(n, float(n), [str(n)]) for n in numbers]


def test_what_was_given_last_is_whole_until_the_next_is_asked_for(workers):
    for thing in workers().made(range(40)):
        before = {k: v.clone() for k, v in thing.items() if k != "s"}
        time.sleep(0.002)  # the processes are ahead by now
        assert all(torch.equal(thing[k], v) for k, v in before.items())


def test_processes_are_used_again_and_an_iteration_that_was_given_up_leaves_nothing(workers):
    pool = workers()
    first = list(islice(pool.made(range(100)), 5))
    pids = {thing["n"][1].item() for thing in first}
    again = [thing["n"].tolist() for thing in pool.made(range(50, 60))]
    assert [n for n, _ in again] == list(range(50, 60))
    assert {pid for _, pid in again} == pids
    assert len(pids) == 2
    pool.close()
    assert not any(alive(pid) for pid in pids)


def test_a_tensor_without_elements_is_handed_over(workers):
    [thing] = workers(lambda n: {"x": torch.empty(0, 3)}).made([0])
    assert thing["x"].shape == (0, 3)


def fail(number):
    if number == 3:
        raise UserError("a.png: damaged; remove it")
    if number == 4:
        raise KeyError("four")
    return make(number)


def test_errors_reach_the_parent(workers):
    things = workers(fail).made(range(9))
    assert len(list(islice(things, 3))) == 3
    with pytest.raises(UserError, match=r"^a\.png: damaged; remove it$"):
        next(things)
    with pytest.raises(RuntimeError, match=r"(?s)data worker failed.*KeyError: 'four'"):
        list(workers(fail).made([4]))


def test_a_killed_worker_is_an_error_and_no_hang(workers):
    pool = workers()
    things = pool.made(range(1000))
    os.kill(next(things)["n"][1].item(), signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"status -9.*data\.num_workers"):
        list(things)


def test_signals_that_a_cluster_sends_to_every_process_are_left_to_the_main_one(workers):
    things = workers().made(range(100))
    pids = {thing["n"][1].item() for thing in islice(things, 4)}
    for pid in pids:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
    assert [thing["n"][0].item() for thing in things] == list(range(4, 100))


PARENT = """
import os, signal, sys, time
import torch
from trilemma.data.workers import Workers

def make(number):
    return {"n": torch.tensor([number, os.getpid()])}

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs the tests in the background has it ignored
things = Workers(make, 2, 1 << 20).made(range(10**9))
print(*{int(next(things)["n"][1]) for _ in range(4)}, flush=True)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("time.sleep(100)", -9),  # killed
        ("", 0),
        ("raise KeyError('x')", 1),
        ("next(things); sys.exit(7)", 7),
        ("keep = sys.modules['keep'] = things; os.kill(os.getpid(), signal.SIGINT); time.sleep(100)", -2),
    ],
    ids=["kill-9", "end", "exception", "exit", "ctrl-c"],
)
def test_workers_end_with_their_parent_however_it_ends(end, status):
    command = [sys.executable, "-c", PARENT + end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if status == -9:
            assert all(alive(pid) for pid in pids)
            parent.kill()
        assert parent.wait(timeout=20) == status
        wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.fixture
def split(toy):
    return toy(captions=True).split("train")


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_stream_gives_the_same_batches_with_workers(split, num_workers):
    options = {"batch_size": 4, "num_batches": 9, "seed": 3, "flip": True, "rank": 1, "world_size": 2}
    expected = list(BatchStream(split, **options))
    found = list(BatchStream(split, **options, num_workers=num_workers))
    assert len(found) == 9
    assert all(equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32], ids=str)
def test_codes_come_through_workers(split, dtype):
    codes = (torch.arange(2 * 10 * 6).view(2, 10, 6) % 250).to(dtype)
    options = {"batch_size": 4, "num_batches": 5, "flip": True, "codes": codes}
    for a, b in zip(BatchStream(split, **options), BatchStream(split, **options, num_workers=2), strict=True):
        assert equal(a, b)
        assert b["code"].dtype == (torch.float32 if dtype.is_floating_point else torch.int64)


@pytest.mark.parametrize("stop", range(8))
def test_the_state_counts_what_was_handed_out_and_not_what_was_made(split, stop):
    options = {"batch_size": 3, "num_batches": 7, "flip": True}
    whole = list(BatchStream(split, **options))
    stopped = BatchStream(split, **options, num_workers=2)
    batches = iter(stopped)
    list(islice(batches, stop))
    state = stopped.state_dict()
    assert state["position"] == stop
    batches.close()
    restored = BatchStream(split, **options, num_workers=1)
    restored.load_state_dict(state)
    left = list(restored) if stop < 7 else []
    assert all(equal(a, b) for a, b in zip(whole[stop:], left, strict=True))


def test_no_generator_is_drawn_from(split):
    before = torch.get_rng_state()
    list(BatchStream(split, batch_size=3, num_batches=4, num_workers=2))
    list(EvalLoader(split, batch_size=3, num_workers=2))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 1), (4, 3), (64, 2)])
def test_evaluation_is_the_same_with_workers(split, batch_size, world_size):
    options = {
        "batch_size": batch_size,
        "codes": split.images.flatten(1),
        "world_size": world_size,
        "rank": world_size - 1,
    }
    expected = list(EvalLoader(split, **options))
    loader = EvalLoader(split, **options, num_workers=2)
    for _ in range(2):
        next(iter(loader))  # a pass that is given up, as Lightning's sanity check does
        assert all(equal(a, b) for a, b in zip(expected, list(loader), strict=True))


def test_batches_of_an_evaluation_stay_whole(split):
    kept = list(EvalLoader(split, batch_size=1, codes=split.images.float().flatten(1), num_workers=2))
    for batch, expected in zip(
        kept, EvalLoader(split, batch_size=1, codes=split.images.float().flatten(1)), strict=True
    ):
        assert equal(batch, expected)


def test_a_negative_number_of_workers_is_refused(toy):
    with pytest.raises(UserError, match=r"data\.num_workers=-1"):
        toy(num_workers=-1)
