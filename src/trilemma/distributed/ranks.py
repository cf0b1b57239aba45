"""The processes of a job that draws or measures: all run the same program, each on its share of the blocks.

Rank 0 alone decides what hangs on files, writes and prints. The blocks are those of a single process, so results do not depend on the
number of processes.
"""

from __future__ import annotations

import re
import socket
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from rich.progress import Progress

from trilemma.distributed import signals
from trilemma.distributed.job import Job, leave_group, status_of, this_job
from trilemma.distributed.kept_blocks import KeptBlocks, read_kept
from trilemma.errors import Stopped, TrainingError, UserError

T = TypeVar("T")


class Ranks:
    """The processes of a job; also a job of one process. All of them call each method at once.

    Args:
        job: The job; of several processes it has been joined.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._num_calls = 0

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.job.world_size

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0."""
        return self.job.is_first

    def first(self, make: Callable[[], T]) -> T:
        """Run `make` in rank 0, and give what it returns to all; it can be written as JSON. An error there ends all."""
        return make() if self.size == 1 else self.job.broadcast(self._name(), make)

    def rank_zero_first(self, make: Callable[[], T]) -> T:
        """Run `make` in every process, see `Job.rank_zero_first`."""
        return make() if self.size == 1 else self.job.rank_zero_first(self._name(), make)

    def map(
        self,
        work: Callable[[range], T],
        num: int,
        *,
        block: int,
        keep: Path | None = None,
        title: str | None = None,
    ) -> list[T]:
        """Compute something of `num` images, block by block.

        Args:
            work: From the indices of a block's images to anything on the CPU that can be pickled.
            num: Number of images.
            block: Images in a block; the last one may have fewer.
            keep: Where finished blocks are kept when the program is stopped, and looked for; each is a tensor.
            title: Of a progress bar.

        Returns:
            In rank 0 the answers in the order of their blocks; an empty list in the others.

        Raises:
            UserError: That of any process, in rank 0; the others end silently with its status. So for the following.
            TrainingError: If a process failed otherwise, or is gone.
            Stopped: If any of them was asked to stop.
        """
        blocks = [range(start, min(start + block, num)) for start in range(0, num, block)]
        mine = blocks[self.job.rank :: self.size]
        if self.size == 1:
            return _compute(work, mine, keep, title)
        failure: BaseException | None = None
        answers: list[T] = []
        with signals.waiting(*signals.ALL):
            try:
                answers = _compute(work, mine, keep, title if self.is_first else None)
            except (Exception, Stopped) as error:
                failure = error
            self._settle(failure)
            parts = self._gather(answers)
        raise_if_stopped()
        return [parts[number % self.size][number // self.size] for number in range(len(blocks))] if parts else []

    def check_accelerators(self, device: str) -> None:
        """See that no two processes compute on one GPU.

        Raises:
            UserError: If two do.
        """
        if not device.startswith("cuda") or self.size == 1:
            return
        identity = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        used = self._gather((socket.gethostname(), str(identity)))
        num = len(set(used))
        if self.first(lambda: num < len(used)):
            line = f"{self.size} processes for {num} GPU{'s' * (num > 1)}: start as many as there are GPUs"
            self.first(lambda: _refuse(line))

    def _name(self) -> str:
        self._num_calls += 1
        return f"call {self._num_calls}"

    def _settle(self, failure: BaseException | None) -> None:
        """End all processes if one has failed: rank 0 says which, and why."""
        own = None if failure is None else (_message_of(failure, print_crash=not self.is_first), status_of(failure))
        outcomes: list[tuple[str, int] | None] = [None] * self.size
        self._pass(lambda: dist.all_gather_object(outcomes, own))
        for rank, outcome in enumerate(outcomes):
            if outcome is None:
                continue
            if failure is not None and rank == self.job.rank == 0:
                raise failure
            raise _error_of(*outcome, f"process {rank} of {self.size}: ") if self.is_first else SystemExit(outcome[1])

    def _gather(self, own: T) -> list[T]:
        parts: list[Any] = [None] * self.size if self.is_first else []
        self._pass(lambda: dist.gather_object(own, parts if self.is_first else None))
        return parts

    def _pass(self, transfer: Callable[[], object]) -> None:
        try:
            transfer()
        except RuntimeError as error:
            if not self.is_first:  # it has nothing to add
                raise SystemExit(1) from None
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[
                0
            ]  # without gloo's source line and advice
            raise TrainingError(f"another process of this job is gone; it may have said why ({reason})") from None


def run_on_ranks(run: Callable[[Ranks], None], device: str) -> None:
    """Run a program in all processes of a job; all end with the same status.

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
    line = f"device={device} is one for {job.world_size} processes: device=cuda gives each its own"
    job.broadcast("device", lambda: _refuse(line) if device.startswith("cuda:") else None)
    if device == "cuda" and (num := torch.cuda.device_count()):
        torch.cuda.set_device(job.local_rank % num)  # a modulo, because SLURM may show each process only its own GPU
    # The others hear of a signal from rank 0, or tell it after their share.
    with nullcontext() if job.is_first else signals.waiting(*signals.ALL):
        try:
            with signals.waiting(*signals.ALL):
                job.join()
            ranks = Ranks(job)
            ranks.check_accelerators(device)
            run(ranks)
            ranks.first(lambda: None)  # so that a process that is done outlives rank 0's last lines
        finally:
            leave_group()


def raise_if_stopped(*_: object) -> None:
    """Raise if a signal asked to stop; finished blocks are kept."""
    if status := signals.asked():
        raise Stopped(status, f"stopped by {signals.name()}; what is finished is kept, and the same command goes on")


def _compute(work: Callable[[range], T], blocks: list[range], keep: Path | None, title: str | None) -> list[T]:
    """Compute blocks in this process, or take those that an earlier run has kept."""
    answers: dict[range, Any] = {} if keep is None else dict(read_kept(keep, blocks))
    left = [indices for indices in blocks if indices not in answers]
    with KeptBlocks(keep) as kept, Progress(transient=True, disable=title is None) as progress:
        task = progress.add_task(title or "", total=sum(map(len, left)))
        for indices in left:
            raise_if_stopped()
            answers[indices] = work(indices)
            kept.add(indices, answers[indices])
            progress.advance(task, len(indices))
        raise_if_stopped()
    return [answers[indices] for indices in blocks]


def _refuse(line: str) -> None:
    raise UserError(line)


def _message_of(error: BaseException, *, print_crash: bool) -> str:
    """Put an error into a line for rank 0; a crash prints its traceback where it happened."""
    if isinstance(error, (Stopped, UserError, TrainingError)):
        return str(error)
    if print_crash:
        traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _error_of(message: str, status: int, where: str) -> BaseException:
    """Rebuild another process's error."""
    line = f"{where}{message}"
    if status == status_of(UserError()):
        return UserError(line)
    return TrainingError(line) if status == status_of(TrainingError()) else Stopped(status, line)
