"""The processes of a job that draws or measures: rank 0 runs the program, the others compute their share.

Rank 0 alone decides, writes and prints. Long work is divided into blocks, which are assigned to the ranks in turn, and rank
0 collects the results in order. The blocks are those of a single process, so results do not depend on the number of
processes.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import Progress
from torch import Tensor

from trilemma.distributed import signals
from trilemma.distributed.channels import Channels
from trilemma.distributed.job import Job, status_of, this_job
from trilemma.distributed.kept_blocks import KeptBlocks, read_kept
from trilemma.errors import Stopped, TrainingError, UserError

T = TypeVar("T")
_FIRST = 0


@dataclass(frozen=True)
class _Prepare:
    """A request: build the state that later requests work on."""

    make: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Map:
    """A request: compute the blocks that are this rank's."""

    work: Callable[..., Any]
    blocks: list[range]
    has_rows: bool
    keep: Path | None
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _End:
    """The last request."""

    status: int


@dataclass(frozen=True)
class _RankResult:
    """The result of a request in one process.

    Attributes:
        error: Message of what it raised; None on success.
        status: Exit status of that error.
        accelerator: Node and identity of the accelerator it works on.
    """

    error: str | None = None
    status: int = 0
    accelerator: tuple[str, str] | None = None


class Ranks:
    """The processes of a job; also a job of one process.

    Args:
        job: The job. Where it has several processes, all of them build their `Ranks` at once.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._state: Any = None
        self._channels = Channels(job) if job.world_size > 1 else None

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.job.world_size

    def prepare(self, state: T, make: Callable[..., T], *arguments: Any) -> None:
        """Build the state that `map` works on in every process.

        Args:
            state: The state of rank 0.
            make: Builds the state in the others; a module-level function.
            arguments: Arguments of `make`; they are sent.

        Raises:
            UserError: If another process cannot make it, or two of them work on one accelerator.
        """
        self._state = state
        if self.size == 1:
            return
        with signals.waiting(*signals.ALL):
            self._tell(_Prepare(make, arguments))
            outcomes = self._settle(_RankResult(accelerator=_accelerator()))
        used = [outcome.accelerator for outcome in outcomes if outcome.accelerator is not None]
        if (num := len(set(used))) < len(used):
            raise UserError(f"{len(used)} processes for {num} GPU{'s' * (num > 1)}: start as many as there are GPUs")
        raise_if_stopped()

    def map(
        self,
        work: Callable[..., T],
        num: int,
        *arguments: Any,
        block: int,
        rows: Tensor | None = None,
        keep: Path | None = None,
        title: str | None = None,
    ) -> list[T]:
        """Compute something of `num` images, block by block, in all processes.

        Args:
            work: (state, indices of a block's images, its rows or None, *arguments) -> anything on the CPU that can be
                pickled; a module-level function.
            num: Number of images.
            arguments: The same for all blocks.
            block: Images in a block; the last one may have fewer.
            rows: [num, ...], of which every block gets its part.
            keep: Where finished blocks are kept when the program is stopped, and looked for; each is a tensor.
            title: Of a progress bar.

        Returns:
            The answers, in the order of their blocks.

        Raises:
            UserError: That of any process.
            TrainingError: If a process failed otherwise, or is gone.
            Stopped: If any of them was asked to stop.
        """
        blocks = [range(start, min(start + block, num)) for start in range(0, num, block)]
        answers: dict[range, Any] = {} if keep is None else dict(read_kept(keep, blocks))
        left = [indices for indices in blocks if indices not in answers]
        request = _Map(work, left, rows is not None, keep, arguments)
        if self.size == 1:
            parts = (_part(rows, indices) for indices in left)
            answers |= zip(left, self._answers(request, left, parts, title), strict=True)
        else:
            with signals.waiting(*signals.ALL):
                self._tell(request)
                answers |= zip(left, self._map_on_all(request, rows, title), strict=True)
            raise_if_stopped()
        return [answers[indices] for indices in blocks]

    def worker_loop(self) -> int:
        """Serve the requests of rank 0 until the end, in any other process.

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
                self._work_on(request)

    def end(self, status: int) -> None:
        """End the worker loops of the others, in rank 0."""
        with signals.waiting(*signals.ALL):
            for rank in range(1, self.size):
                with suppress(TrainingError):  # a process that has already ended
                    self._send(_End(status), rank)

    def _map_on_all(self, request: _Map, rows: Tensor | None, title: str | None) -> list[Any]:
        """Compute rank 0's blocks of a request and collect those of all ranks."""
        ranks = [number % self.size for number in range(len(request.blocks))]
        if rows is not None:
            for rank, indices in zip(ranks, request.blocks, strict=True):
                if rank:
                    self._send(_part(rows, indices), rank)
        mine = request.blocks[:: self.size]
        try:
            own = self._answers(request, mine, (_part(rows, indices) for indices in mine), title)
        except BaseException as error:
            self._exchange(_result_of(error))  # so that the others finish the request too
            raise
        self._settle(_RankResult())
        waiting = iter(own)
        return [self._receive(rank) if rank else next(waiting) for rank in ranks]

    def _work_on(self, request: _Map) -> None:
        """Compute this rank's blocks of a request and send them to rank 0."""
        mine = request.blocks[self.job.rank :: self.size]
        parts = [self._receive(_FIRST) if request.has_rows else None for _ in mine]  # all before any can fail
        try:
            answers = self._answers(request, mine, parts, None)
        except (Exception, Stopped) as error:
            self._report(_result_of(error))
            return
        if self._report(_RankResult()):
            for answer in answers:
                self._send(answer, _FIRST)

    def _prepare(self, request: _Prepare) -> None:
        try:
            self._state = request.make(*request.arguments)
        except (Exception, Stopped) as error:
            self._report(_result_of(error))
        else:
            self._report(_RankResult(accelerator=_accelerator()))

    def _answers(
        self, request: _Map, mine: list[range], parts: Iterable[Tensor | None], title: str | None
    ) -> list[Any]:
        answers: list[Any] = []
        with KeptBlocks(request.keep) as kept, Progress(transient=True, disable=title is None) as progress:
            task = progress.add_task(title or "", total=sum(map(len, mine)))
            for indices, part in zip(mine, parts, strict=True):
                raise_if_stopped()
                answers.append(request.work(self._state, indices, part, *request.arguments))
                kept.add(indices, answers[-1])
                progress.advance(task, len(indices))
            raise_if_stopped()
        return answers

    def _settle(self, own: _RankResult) -> list[_RankResult]:
        """Exchange the results of all processes; raises the error of one that failed."""
        outcomes = self._exchange(own)
        for rank, outcome in enumerate(outcomes):
            if outcome.error is not None:
                raise _error_of(outcome, f"process {rank} of {self.size}: ")
        return outcomes

    def _exchange(self, own: _RankResult) -> list[_RankResult]:
        outcomes = [own, *(self._receive(rank) for rank in range(1, self.size))]
        self._tell(all(outcome.error is None for outcome in outcomes))
        return outcomes

    def _report(self, outcome: _RankResult) -> bool:
        """Send this process's result to rank 0, and receive whether all succeeded."""
        self._send(outcome, _FIRST)
        return bool(self._receive(_FIRST))

    def _tell(self, what: Any) -> None:
        for rank in range(1, self.size):
            self._send(what, rank)

    def _send(self, what: Any, rank: int) -> None:
        assert self._channels is not None
        self._channels.send(what, rank)

    def _receive(self, rank: int) -> Any:
        assert self._channels is not None
        return self._channels.receive(rank)


def run_on_ranks(run: Callable[[Ranks], None], device: str) -> None:
    """Run a program in rank 0 of a job, with worker loops in the others; all end with the same status.

    Args:
        run: The program.
        device: What it computes on: of "cuda", every process takes its own.

    Raises:
        SystemExit: In the others, if rank 0 failed or was stopped.
    """
    job = this_job()
    if job.world_size == 1:
        run(Ranks(job))
        return
    job.broadcast("ranks", lambda: None)  # if rank 0 ends before this, so do the others
    if device == "cuda" and (num := torch.cuda.device_count()):
        torch.cuda.set_device(job.local_rank % num)  # a modulo, because SLURM may show each process only its own GPU
    if not job.is_first:
        with signals.waiting(*signals.ALL):
            status = Ranks(job).worker_loop()
        if status:
            raise SystemExit(status)
        return
    with signals.waiting(*signals.ALL):
        ranks = Ranks(job)
    status = 0
    try:
        if device.startswith("cuda:"):
            raise UserError(f"device={device} is one for {job.world_size} processes: device=cuda gives each its own")
        run(ranks)
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        ranks.end(status)


def raise_if_stopped(*_: object) -> None:
    """Raise if a signal asked to stop; finished blocks are kept."""
    if status := signals.asked():
        raise Stopped(status, f"stopped by {signals.name()}; what is finished is kept, and the same command goes on")


def _part(rows: Tensor | None, indices: range) -> Tensor | None:
    """Copy the rows of a block: a view would be sent with all the rows."""
    return None if rows is None else rows[indices.start : indices.stop].clone()


def _accelerator() -> tuple[str, str] | None:
    """Identify the accelerator that this process has used, with its node."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    return socket.gethostname(), str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


def _result_of(error: BaseException) -> _RankResult:
    """Convert an error to the result sent to rank 0; a crash prints its traceback where it happened."""
    if isinstance(error, (Stopped, UserError, TrainingError)):
        return _RankResult(str(error), status_of(error))
    if isinstance(error, Exception):
        traceback.print_exception(error)
    return _RankResult(f"{type(error).__name__}: {error}", status_of(error))


def _error_of(outcome: _RankResult, where: str) -> BaseException:
    """Rebuild another process's error."""
    line = f"{where}{outcome.error}"
    if outcome.status == status_of(UserError()):
        return UserError(line)
    return TrainingError(line) if outcome.status == status_of(TrainingError()) else Stopped(outcome.status, line)
