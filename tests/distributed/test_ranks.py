"""Processes that lend the first one a hand: what they compute comes in order, and they end as it does."""

import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

import trilemma.distributed.ranks
from trilemma.distributed import signals
from trilemma.distributed.job import Job, status_of, this_job
from trilemma.distributed.ranks import Ranks, run_on_ranks
from trilemma.errors import Stopped, TrainingError, UserError


def square(state, indices, rows, offset):
    """Values, who made them, and what the block was given."""
    values = torch.arange(indices.start, indices.stop) ** 2 + offset
    return values, state, None if rows is None else rows + indices.start


def refuse_in_the_second(state, indices, rows):
    if state == 1:
        raise UserError(f"no {list(indices)}")


def crash_in_the_second(state, indices, rows):
    if state == 1:
        raise ZeroDivisionError("as was to be shown")


def refuse_in_the_first(state, indices, rows):
    if state == 0:
        raise UserError("mine")


def die_in_the_second(state, indices, rows):
    if state == 1:
        os._exit(9)


def rank():
    return this_job().rank


def refuse():
    raise UserError("cannot")


def on_one_gpu():
    trilemma.distributed.ranks._accelerator = lambda: ("node", "uuid")
    return rank()


def program(ranks):
    """What the first process does; its results go where it is told."""
    found = {}
    ranks.prepare(rank(), rank)
    for num, block in ((11, 4), (3, 4), (8, 4)):
        found[f"{num} by {block}"] = ranks.map(square, num, 100, block=block)
    rows = torch.rand(11, 2, generator=torch.Generator().manual_seed(0))
    found["rows"] = ranks.map(square, 11, 0, block=4, rows=rows)
    for name, work in (("in the second", refuse_in_the_second), ("in the first", refuse_in_the_first)):
        try:
            ranks.map(work, 8, block=4)
        except UserError as error:
            found[f"refused {name}"] = str(error)
    try:
        ranks.prepare(0, refuse)
    except UserError as error:
        found["cannot prepare"] = str(error)
    ranks.prepare(rank(), rank)
    try:
        ranks.map(crash_in_the_second, 8, block=4)
    except TrainingError as error:
        found["crashed"] = str(error)
    found["after all"] = ranks.map(square, 5, 0, block=4)
    try:
        ranks.prepare(on_one_gpu(), on_one_gpu)
    except UserError as error:
        found["one GPU"] = str(error)
    torch.save(found, os.environ["FOUND"])
    raise UserError("at the end")


def slow_until_asked(state, indices, rows):
    """The first process is asked to stop while both work on their second blocks."""
    if indices.start >= 8:
        if state == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGUSR1)
    return torch.arange(indices.start, indices.stop)


def be_stopped(ranks):
    ranks.prepare(rank(), rank)
    ranks.map(slow_until_asked, 16, block=4, keep=Path(os.environ["FOUND"]).parent / "kept")


def lose_one(ranks):
    ranks.prepare(rank(), rank)
    ranks.map(die_in_the_second, 8, block=4)


def begin(which, number, port, folder):
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "FOUND": str(folder / "found.pt"),
    }
    signals.listen(wait=number > 0)
    try:
        run_on_ranks(which, "cpu")
    except (Stopped, TrainingError, UserError) as error:
        raise SystemExit(status_of(error)) from None


def run_two(which, folder):
    """Exit statuses of two processes that run a program together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=begin, args=(which, number, port, folder)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    return [process.exitcode for process in both]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    statuses = run_two(program, folder)
    return statuses, torch.load(folder / "found.pt", weights_only=False)


@pytest.mark.parametrize(("num", "ranks"), [(11, [0, 1, 0]), (3, [0]), (8, [0, 1])])
def test_blocks_are_dealt_and_come_back_in_order(both, num, ranks):
    answers = both[1][f"{num} by 4"]
    assert [rank for _, rank, _ in answers] == ranks
    assert torch.equal(torch.cat([values for values, _, _ in answers]), torch.arange(num) ** 2 + 100)
    assert {rows for *_, rows in answers} == {None}


def test_rows_go_to_their_blocks(both):
    rows = torch.rand(11, 2, generator=torch.Generator().manual_seed(0))
    expected = [rows[start : start + 4] + start for start in (0, 4, 8)]
    for (*_, given), part in zip(both[1]["rows"], expected, strict=True):
        assert torch.equal(given, part)


def test_what_is_refused_in_one_is_refused_in_the_first_and_they_go_on(both):
    found = both[1]
    assert found["refused in the second"] == "process 1 of 2: no [4, 5, 6, 7]"
    assert found["refused in the first"] == "mine"
    assert found["cannot prepare"] == "process 1 of 2: cannot"
    assert found["crashed"] == "process 1 of 2: ZeroDivisionError: as was to be shown"
    assert [rank for _, rank, _ in found["after all"]] == [0, 1]


def test_two_processes_on_one_gpu_are_refused(both):
    assert both[1]["one GPU"] == "2 processes for 1 GPU: start as many as there are GPUs"


def test_all_end_with_the_status_of_the_first(both):
    assert both[0] == [2, 2]


def test_what_is_finished_is_kept_when_they_are_asked_to_stop(tmp_path):
    assert run_two(be_stopped, tmp_path) == [75, 75]
    assert len(list((tmp_path / "kept").iterdir())) == 2  # one file a process
    ranks = Ranks(Job())
    made = []
    found = ranks.map(lambda *_: made.append(1), 20, block=4, keep=tmp_path / "kept")
    assert torch.equal(torch.cat(found[:4]), torch.arange(16))
    assert (len(found), len(made)) == (5, 1)
    made.clear()
    ranks.map(lambda *_: made.append(1), 16, block=8, keep=tmp_path / "kept")
    assert len(made) == 2  # blocks of another size are others


def test_a_process_that_dies_ends_the_others(tmp_path):
    assert run_two(lose_one, tmp_path) == [1, 9]


def test_alone_all_blocks_are_ones_own():
    ranks = Ranks(Job())
    ranks.prepare(5, pytest.fail)
    answers = ranks.map(square, 6, 0, block=4)
    assert torch.equal(torch.cat([values for values, _, _ in answers]), torch.arange(6) ** 2)
    assert [state for _, state, _ in answers] == [5, 5]
    with pytest.raises(UserError, match="mine"):
        Ranks(Job()).map(lambda *_: refuse_in_the_first(0, None, None), 4, block=2)
