"""Processes that run one program: each computes its share, rank 0 has all in order, and they end alike."""

import multiprocessing
import os
import signal
import socket
import time
from contextlib import redirect_stderr

import pytest
import torch

from trilemma.distributed import ranks as module
from trilemma.distributed import signals
from trilemma.distributed.job import Job, new_run_id, status_of, this_job
from trilemma.distributed.ranks import Ranks, run_on_ranks
from trilemma.errors import Stopped, TrainingError, UserError


def begin(program, number, port, folder):
    """Run a program as process `number` of two; what it raises goes to a file of its own."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(number),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    this_job.cache_clear()
    new_run_id.cache_clear()
    torch.set_num_threads(1)
    signals.listen(wait=number > 0)
    with (folder / f"stderr-{number}").open("w") as stderr, redirect_stderr(stderr):
        try:
            run_on_ranks(lambda ranks: program(ranks, folder), "cpu")
        except (Stopped, TrainingError, UserError) as error:
            (folder / f"error-{number}").write_text(str(error))
            raise SystemExit(status_of(error)) from None


def run_two(program, folder):
    """Exit statuses of two processes that run a program together, and the lines of what they raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=begin, args=(program, number, port, folder)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    lines = [path.read_text() if (path := folder / f"error-{number}").exists() else None for number in range(2)]
    return [process.exitcode for process in both], lines


def squares(indices):
    """Values, and who made them."""
    return torch.arange(indices.start, indices.stop) ** 2, this_job().rank


def share(ranks, folder):
    found = {num: ranks.map(squares, num, block=4) for num in (11, 3, 8)}
    torch.save((found, ranks.first(lambda: os.getpid())), folder / f"found-{ranks.job.rank}.pt")


def test_blocks_are_dealt_and_come_back_in_order(tmp_path):
    assert run_two(share, tmp_path)[0] == [0, 0]
    (found, pid), (others, same_pid) = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    for num, ranks in ((11, [0, 1, 0]), (3, [0]), (8, [0, 1])):  # of three images one process gets none
        assert [rank for _, rank in found[num]] == ranks
        assert torch.equal(torch.cat([values for values, _ in found[num]]), torch.arange(num) ** 2)
    assert not any(others.values())
    assert pid == same_pid


def in_rank(number, error):
    """A program whose work raises an error in one process."""

    def work(indices):
        if this_job().rank == number:
            raise error
        return indices

    return lambda ranks, folder: ranks.map(work, 8, block=4)


def decide(ranks, folder):
    ranks.first(lambda: [][0] if folder is None else _refuse())


def _refuse():
    raise UserError("no such file")


@pytest.mark.parametrize(
    ("program", "status", "line"),
    [
        (in_rank(1, UserError("no [4, 5]")), 2, "process 1 of 2: no [4, 5]"),
        (in_rank(0, UserError("mine")), 2, "mine"),
        (in_rank(1, ZeroDivisionError("as shown")), 1, "process 1 of 2: ZeroDivisionError: as shown"),
        (decide, 2, "no such file"),
    ],
    ids=["refused in the second", "refused in the first", "crashed in the second", "refused where the first decides"],
)
def test_an_error_in_one_is_said_by_the_first_and_ends_both_alike(tmp_path, program, status, line):
    assert run_two(program, tmp_path) == ([status, status], [line, None])
    assert (tmp_path / "stderr-0").read_text() == ""
    assert ("ZeroDivisionError" in (tmp_path / "stderr-1").read_text()) == ("ZeroDivisionError" in line)


def lose_one(ranks, folder):
    ranks.map(lambda indices: os._exit(9) if this_job().rank else indices, 8, block=4)


def test_a_process_that_dies_ends_the_other_with_a_line(tmp_path):
    statuses, lines = run_two(lose_one, tmp_path)
    assert statuses == [1, 9]
    assert lines[0].startswith("another process of this job is gone; it may have said why (")


def slow_until_asked(indices):
    """The first process is asked to stop while both work on their second blocks."""
    if indices.start >= 8:
        if this_job().rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGUSR1)
    return torch.arange(indices.start, indices.stop)


def test_what_is_finished_is_kept_when_they_are_asked_to_stop(tmp_path):
    statuses, _ = run_two(
        lambda ranks, folder: ranks.map(slow_until_asked, 16, block=4, keep=folder / "kept"), tmp_path
    )
    assert statuses == [75, 75]
    assert len(list((tmp_path / "kept").iterdir())) == 2  # one file a process
    made = []
    found = Ranks(Job()).map(lambda _: made.append(1), 20, block=4, keep=tmp_path / "kept")
    assert torch.equal(torch.cat(found[:4]), torch.arange(16))
    assert (len(found), len(made)) == (5, 1)
    made.clear()
    Ranks(Job()).map(lambda _: made.append(1), 16, block=8, keep=tmp_path / "kept")
    assert len(made) == 2  # blocks of another size are others


def on_one_gpu(ranks, folder):
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device: type("GPU", (), {"uuid": "the only one"})
    ranks.check_accelerators("cuda")


def test_two_processes_on_one_gpu_are_refused(tmp_path):
    line = "2 processes for 1 GPU: start as many as there are GPUs"
    assert run_two(on_one_gpu, tmp_path) == ([2, 2], [line, None])


def test_a_device_of_one_is_refused_for_two(monkeypatch):
    monkeypatch.setattr(module, "this_job", lambda: Job(world_size=2))
    with pytest.raises(UserError, match="device=cuda:1 is one for 2 processes: device=cuda gives each its own"):
        run_on_ranks(pytest.fail, "cuda:1")


def test_alone_all_blocks_are_ones_own():
    ranks = Ranks(Job())
    answers = ranks.map(squares, 6, block=4)
    assert torch.equal(torch.cat([values for values, _ in answers]), torch.arange(6) ** 2)
    with pytest.raises(UserError, match="mine"):
        ranks.map(lambda _: _raise(UserError("mine")), 4, block=2)


def _raise(error):
    raise error
