"""Processes that make batches ahead, so that reading and decoding overlap the step."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

from trilemma.errors import TrainingError, UserError

Parts = Mapping[str, Tensor | list[str]]

_AHEAD = 2  # things that each process has made or makes before they are asked for
_ALIGNMENT = 64  # bytes
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    slots: list[mmap.mmap]


class Workers:
    """Forked processes that make numbered things on the CPU; they are given out in the order they were asked for.

    Not torch's DataLoader, for three reasons. That draws from the global generator when it starts, which would change the
    training noise. It hands tensors over in /dev/shm, which containers keep small; here each process has memory of its own
    that it shares with its parent. And it ends processes by SIGTERM at exit; but SLURM sends that, and other signals, to every
    process of a job, of which the main one alone is to act: these ignore them all, and end when their parent does, however
    it does.

    Args:
        make: From a number to named tensors on the CPU and lists of strings. It sees the parent as it was at the first `made`.
        num_workers: Number of processes, at least 1.
        num_bytes: At least what the tensors of one thing take, see `num_bytes`.

    Raises:
        UserError: If the system cannot fork.
    """

    def __init__(self, make: Callable[[int], Parts], num_workers: int, num_bytes: int) -> None:
        if "fork" not in multiprocessing.get_all_start_methods():
            raise UserError(f"data.num_workers={num_workers}: this system cannot fork; take data.num_workers=0")
        self._make = make
        self._num_workers = num_workers
        self._num_bytes = num_bytes
        self._workers: list[_Worker] = []
        self._asked: deque[tuple[_Worker, int]] = deque()
        self._count = 0

    def made(self, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The things of these numbers, in this order; each is copied by who keeps it, for the next overwrites it.

        The processes start with the first call, and stay for the next one.

        Raises:
            UserError: If `make` raised one.
            TrainingError: If a process was killed.
            RuntimeError: If `make` failed otherwise; the message has the traceback.
        """
        if not self._workers:
            self._start()
        while self._asked:  # what an iteration that was given up had asked for
            self._receive()
        remaining = iter(numbers)
        for number in islice(remaining, _AHEAD * self._num_workers - 1):
            self._ask(number)
        # One more is asked for before each answer is waited for: what was given last is free again then.
        for number in remaining:
            self._ask(number)
            yield self._receive()
        while self._asked:
            yield self._receive()

    def close(self) -> None:
        """End the processes."""
        if self._workers:
            self._finalizer()
            atexit.unregister(self._finalizer)
        self._workers = []
        self._asked.clear()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        for _ in range(self._num_workers):
            ours, theirs = context.Pipe()
            slots = [mmap.mmap(-1, max(1, self._num_bytes)) for _ in range(_AHEAD)]
            parents = [worker.connection for worker in self._workers] + [ours]
            arguments = (self._make, theirs, slots, parents, os.getpid())
            process = context.Process(target=_work, args=arguments, daemon=True, name="trilemma-data")
            with warnings.catch_warnings():
                # Python 3.12 warns of any fork beside threads. These processes touch nothing that a thread of ours locks.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, slots))
        self._count = 0
        self._finalizer = weakref.finalize(self, _stop, list(self._workers), os.getpid())
        # After multiprocessing registered its own hook, so before that waits for processes that ignore its SIGTERM.
        atexit.register(self._finalizer)

    def _ask(self, number: int) -> None:
        worker = self._workers[self._count % self._num_workers]
        slot = self._count // self._num_workers % _AHEAD
        self._count += 1
        with contextlib.suppress(BrokenPipeError):  # it is dead, and found so where its answer is waited for
            worker.connection.send((number, slot))
        self._asked.append((worker, slot))

    def _receive(self) -> dict[str, Any]:
        worker, slot = self._asked.popleft()
        try:
            kind, answer = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join(timeout=10)
            status, pid = worker.process.exitcode, worker.process.pid
            self.close()
            raise TrainingError(
                f"a data worker (process {pid}) ended with status {status}; -9 is most often for want of memory: take fewer "
                "data.num_workers, or more memory. The same command goes on from the last checkpoint"
            ) from None
        if kind == "user error":
            raise UserError(answer)
        if kind == "error":
            raise RuntimeError(f"a data worker failed:\n{answer}")
        memory = worker.slots[slot]
        return {name: part if isinstance(part, list) else part.read(memory) for name, part in answer.items()}


def num_bytes(*tensors: tuple[Sequence[int], torch.dtype]) -> int:
    """Memory that tensors of these shapes and types take when they are handed over together."""
    return sum(_aligned(math.prod(shape) * dtype.itemsize) for shape, dtype in tensors)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, memory: mmap.mmap) -> Tensor:
        count = math.prod(self.shape)
        if count == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(memory, dtype=self.dtype, count=count, offset=self.offset).view(self.shape)


def _work(
    make: Callable[[int], Parts], connection: Connection, slots: list[mmap.mmap], parents: list[Connection], parent: int
) -> None:
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for end in parents:  # else they would keep the pipes of a dead parent open
        end.close()
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            number, slot = connection.recv()
            try:
                answer: tuple[str, Any] = ("made", _write(make(number), slots[slot]))
            except UserError as error:
                answer = ("user error", str(error))
            except Exception:
                answer = ("error", traceback.format_exc())
            connection.send(answer)


def _write(parts: Parts, memory: mmap.mmap) -> dict[str, _Place | list[str]]:
    places: dict[str, _Place | list[str]] = {}
    offset = 0
    for name, part in parts.items():
        if isinstance(part, list):
            places[name] = part
            continue
        place = _Place(part.dtype, tuple(part.shape), offset)
        if part.numel():
            place.read(memory).copy_(part)
        places[name] = place
        offset += _aligned(part.numel() * part.itemsize)
    return places


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _stop(workers: list[_Worker], parent: int) -> None:
    if os.getpid() != parent:  # a fork that forgets its copy
        return
    for worker in workers:
        worker.connection.close()
        worker.process.kill()
    for worker in workers:
        worker.process.join()
