"""The processes of a job that draws or measures: the first one runs the program, the others lend it a hand.

All that is decided, written and said happens in the first process. What takes long is cut into blocks, block n falls to
process n mod their number, and the first process puts the answers together in their order. A block is what one process
alone would compute in one go, so the answer does not depend on how many there are.
"""

from __future__ import annotations

import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from rich.progress import Progress
from torch import Tensor

from trilemma.errors import UserError
from trilemma.runs.job import Job, this_job

T = TypeVar("T")
_FIRST = 0


@dataclass(frozen=True)
class _Prepare:
    """A request: make what later requests work on."""

    make: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Spread:
    """A request: work on the blocks that fall to you."""

    work: Callable[..., Any]
    blocks: list[range]
    has_rows: bool
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _End:
    """The last request."""

    status: int


@dataclass(frozen=True)
class _Outcome:
    """What became of a request in one process: the error, if there was one, and the accelerator that it works on."""

    error: str | None = None
    is_users: bool = False
    accelerator: tuple[str, str] | None = None


class Crew:
    """The processes of a job; one process alone is a crew too.

    Args:
        job: Which one.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._state: Any = None
        self._lines: dist.ProcessGroupGloo | None = None
        if self.size > 1:
            assert job.store is not None
            # Not torch's default group: libraries take part in that by themselves, and here the first process is alone.
            store = dist.PrefixStore("crew", job.store)
            self._lines = dist.ProcessGroupGloo(store, job.rank, self.size, timedelta(days=7))

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.job.world_size

    def prepare(self, state: T, make: Callable[..., T], *arguments: Any) -> None:
        """Let every process hold what `spread` works on.

        Args:
            state: That of the first process.
            make: Makes it in the others; a function of a module.
            arguments: Its own; they are sent.

        Raises:
            UserError: If another process cannot make it, or two of them work on one accelerator.
        """
        self._state = state
        if self.size == 1:
            return
        self._tell(_Prepare(make, arguments))
        outcomes = self._settle(_Outcome(accelerator=_accelerator()))
        used = [outcome.accelerator for outcome in outcomes if outcome.accelerator is not None]
        if len(set(used)) < len(used):
            raise UserError(f"{len(used)} processes share {len(set(used))} accelerators: start one process for each")

    def spread(
        self,
        work: Callable[..., T],
        num: int,
        *arguments: Any,
        block: int,
        rows: Tensor | None = None,
        title: str | None = None,
    ) -> list[T]:
        """Compute something of `num` images, block by block, in all processes.

        Args:
            work: (state, indices of a block's images, its rows or None, *arguments) -> anything on the CPU that can be
                pickled; a function of a module.
            num: Number of images.
            arguments: The same for all blocks.
            block: Images in a block; the last one may have fewer.
            rows: [num, ...], of which every block gets its part.
            title: Of a progress bar.

        Returns:
            The answers, in the order of their blocks.

        Raises:
            UserError: That of any process.
        """
        blocks = [range(start, min(start + block, num)) for start in range(0, num, block)]
        if self.size > 1:
            self._tell(_Spread(work, blocks, rows is not None, arguments))
            if rows is not None:
                self._deal(rows, blocks)
        mine = blocks[:: self.size]
        answers: list[T] = []
        try:
            with Progress(transient=True, disable=title is None) as progress:
                task = progress.add_task(title or "", total=sum(map(len, mine)))
                for indices in mine:
                    given = None if rows is None else rows[indices.start : indices.stop]
                    answers.append(work(self._state, indices, given, *arguments))
                    progress.advance(task, len(indices))
        except BaseException:
            if self.size > 1:  # the others are through with this request, too, when they hear the next one
                self._exchange(_Outcome("the first process failed"))
            raise
        return answers if self.size == 1 else self._gather(answers, len(blocks))

    def serve(self) -> int:
        """In a process that is not the first: do what is asked until the end.

        Returns:
            The status to exit with.
        """
        while True:
            request = self._receive(_FIRST)
            if isinstance(request, _End):
                return request.status
            if isinstance(request, _Prepare):
                self._prepare(request)
            else:
                self._work(request)

    def end(self, status: int) -> None:
        """In the first process: send the others home."""
        if self.size > 1:
            self._tell(_End(status))

    def _prepare(self, request: _Prepare) -> None:
        try:
            self._state = request.make(*request.arguments)
        except Exception as error:
            self._report(_failure(error))
        else:
            self._report(_Outcome(accelerator=_accelerator()))

    def _work(self, request: _Spread) -> None:
        mine = request.blocks[self.job.rank :: self.size]
        rows = [self._receive(_FIRST) if request.has_rows else None for _ in mine]
        try:
            answers = [
                request.work(self._state, indices, given, *request.arguments)
                for indices, given in zip(mine, rows, strict=True)
            ]
        except Exception as error:
            self._report(_failure(error))
            return
        if self._report(_Outcome()):
            for answer in answers:
                self._send(answer, _FIRST)

    def _deal(self, rows: Tensor, blocks: list[range]) -> None:
        for number, indices in enumerate(blocks):
            if rank := number % self.size:
                self._send(
                    rows[indices.start : indices.stop].clone(), rank
                )  # a view would travel with all of its storage

    def _gather(self, own: list[T], num_blocks: int) -> list[T]:
        self._settle(_Outcome())
        waiting = iter(own)
        ranks = (number % self.size for number in range(num_blocks))
        return [self._receive(rank) if rank else next(waiting) for rank in ranks]

    def _settle(self, own: _Outcome) -> list[_Outcome]:
        """How it went in all processes; ends with the error of one that failed."""
        outcomes = self._exchange(own)
        for rank, outcome in enumerate(outcomes):
            if outcome.error is not None:
                line = f"process {rank} of {self.size}: {outcome.error}"
                if outcome.is_users:
                    raise UserError(line)
                _give_up(line)
        return outcomes

    def _exchange(self, own: _Outcome) -> list[_Outcome]:
        outcomes = [own, *(self._receive(rank) for rank in range(1, self.size))]
        self._tell(all(outcome.error is None for outcome in outcomes))
        return outcomes

    def _report(self, outcome: _Outcome) -> bool:
        """Say how it went here, and hear whether it went well everywhere."""
        self._send(outcome, _FIRST)
        return bool(self._receive(_FIRST))

    def _tell(self, what: Any) -> None:
        for rank in range(1, self.size):
            self._send(what, rank)

    def _send(self, what: Any, rank: int) -> None:
        content = torch.frombuffer(bytearray(pickle.dumps(what)), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        self._pass(lambda lines: lines.send([size], rank, 0))
        self._pass(lambda lines: lines.send([content], rank, 0))

    def _receive(self, rank: int) -> Any:
        size = torch.zeros(1, dtype=torch.int64)
        self._pass(lambda lines: lines.recv([size], rank, 0))
        content = torch.empty(int(size), dtype=torch.uint8)
        self._pass(lambda lines: lines.recv([content], rank, 0))
        return pickle.loads(content.numpy().data)

    def _pass(self, transfer: Callable[[Any], Any]) -> None:
        """Wait for a transfer. A process that has died is noticed here: the first one says so, and all end."""
        assert self._lines is not None
        try:
            transfer(self._lines).wait()
        except RuntimeError as error:
            if not self.job.is_first:
                raise SystemExit(1) from None
            reason = str(error).splitlines()[0]
            _give_up(f"another process of this job is gone; it may have said why ({reason})")


def in_crew(run: Callable[[Crew], None], device: str) -> None:
    """Run a program in the first process of a job, with the others at its service; all end with the same status.

    Args:
        run: The program.
        device: What it computes on: of "cuda", every process takes its own.

    Raises:
        SystemExit: In the others, if the first one failed.
    """
    job = this_job()
    if job.world_size == 1:
        run(Crew(job))
        return
    if device == "cuda" and (num := torch.cuda.device_count()):
        torch.cuda.set_device(job.local_rank % num)  # where SLURM shows each process its own only, there is one
    crew = Crew(job)
    if not job.is_first:
        if status := crew.serve():
            raise SystemExit(status)
        return
    status = 1
    try:
        if device.startswith("cuda:"):
            raise UserError(f"device={device} is one for {job.world_size} processes: device=cuda gives each its own")
        run(crew)
        status = 0
    except UserError:
        status = 2
        raise
    except KeyboardInterrupt:
        status = 130
        raise
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        raise
    finally:
        with suppress(SystemExit):  # a process that is gone has ended by itself
            crew.end(status)


def _accelerator() -> tuple[str, str] | None:
    """Node and identity of the accelerator that this process has touched."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return socket.gethostname(), str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _failure(error: Exception) -> _Outcome:
    """What the first process hears of an error; a crash leaves its traceback here."""
    if isinstance(error, UserError):
        return _Outcome(str(error), is_users=True)
    traceback.print_exception(error)
    return _Outcome(f"{type(error).__name__}: {error}")


def _give_up(line: str) -> NoReturn:
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(1)
