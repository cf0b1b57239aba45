"""The job that this process belongs to: its rank in it, and decisions that rank 0 broadcasts to all.

What the environment tells needs no torch: entry points read it before they import torch.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from trilemma.distributed import signals
from trilemma.errors import FAILED, INTERRUPTED, REFUSED, Stopped, TrainingError, UserError

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")

_DECISIONS = "TRILEMMA_DECISIONS"  # variable that passes decisions to processes that Lightning starts on this machine
_POLL_SECONDS = (0.01, 0.5)  # seconds between two polls for a decision, at first and at most
_PORT_IN_USE = 60.0  # seconds that the first process waits for its port
_FAREWELL = 10.0  # seconds that an ending process waits for rank 0's answer, or rank 0 for its answer to be read


@dataclass(frozen=True)
class ProcessRank:
    """The rank of this process in its job, read from its environment.

    Attributes:
        rank: Its number, 0 for the first.
        world_size: How many there are, as far as is known: where Lightning is still to start the others, this is 1.
        local_rank: Its number on its node.
        started_by: Who started it: "srun", "torchrun", "lightning", or None.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    started_by: str | None = None


def place() -> ProcessRank:
    """Read the rank of this process as set by srun, torchrun or Lightning; rank 0 of 1 without them.

    Raises:
        UserError: If SLURM gave several tasks and srun did not start them.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return ProcessRank(rank, world, local, "torchrun")
    # As in Lightning: an interactive shell (salloc, srun --pty) is not a job.
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        if "SLURM_STEP_NUM_TASKS" not in environment and int(environment["SLURM_NTASKS"]) > 1:
            raise UserError(
                f"SLURM gave this job {environment['SLURM_NTASKS']} tasks, and srun did not start them: put srun before python"
            )
        world = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        rank, local = int(environment.get("SLURM_PROCID", "0")), int(environment.get("SLURM_LOCALID", "0"))
        return ProcessRank(rank, world, local, "srun")
    if int(environment.get("LOCAL_RANK", "0")) > 0 and "WORLD_SIZE" in environment:
        local = int(environment["LOCAL_RANK"])
        return ProcessRank(local, int(environment["WORLD_SIZE"]), local, "lightning")
    return ProcessRank()


def slurm_id() -> str | None:
    """Read the number of this process's SLURM job, with its array index (`17_3`), if there is one."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@cache
def new_run_id() -> str:
    """Create the id of a run that was given none, the same in all processes of a job.

    That of the job step which srun started, `slurm-17` or `slurm-17.1`, which a requeue keeps; else the time.
    """
    if _is_step():
        step = os.environ["SLURM_STEP_ID"]
        return f"slurm-{slurm_id()}" + (f".{step}" if step != "0" else "")
    now = time.strftime("%Y-%m-%d_%H-%M-%S")
    return this_job().broadcast("new run id", lambda: now) if place().started_by == "torchrun" else now


def how_to_go_on(run_id: str) -> str:
    """Tell the user how to continue a run."""
    if run_id == new_run_id() and not _is_step():
        return f"the same command with run.id={run_id} goes on"
    return "the same command goes on"


def _is_step() -> bool:
    return place().started_by == "srun" and "SLURM_STEP_ID" in os.environ


@dataclass
class Job:
    """Processes that run one program together.

    Attributes:
        rank: This process's number, 0 for the first.
        world_size: How many there are, as far as is known: where Lightning is still to start the others, this is 1.
        local_rank: This process's number on its node.
        slurm_id: Number of the SLURM job, with its array index (`17_3`), if there is one.
        restarts: How often SLURM has requeued it.
        store: Key-value store shared by the processes; None where there is one process, or Lightning started this one.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    slurm_id: str | None = None
    restarts: int = 0
    store: Store | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, which writes and prints for all."""
        return self.rank == 0

    def broadcast(self, name: str, make: Callable[[], T]) -> T:
        """Broadcast from rank 0 what `make` returns; the others wait, and exit with rank 0 if it fails or is asked to stop.

        Args:
            name: Name of the decision; each is made once, and every process asks for it.
            make: Called in rank 0 only. What it returns can be written as JSON.

        Raises:
            UserError: That of `make`, in the first process. The others end silently with the same status.
            Stopped: In the first process, if it was asked to stop before.
        """
        if not self.is_first:
            value: T = self._value_or_exit(self._answer(name))
            return value
        try:
            signals.check()
            made = make()
        except BaseException as error:
            self._tell(name, {"status": status_of(error)})
            self._wait_until_heard(name)
            raise
        self._tell(name, {"value": made})
        return made

    def rank_zero_first(self, name: str, make: Callable[[], T]) -> T:
        """Run `make` in every process: rank 0 first, then one process on each other node, then the rest.

        So a download, decoding or computation is done once, or once a node where nodes do not share the folder. An error
        in rank 0 ends all processes, as in `broadcast`.
        """
        made: list[T] = []
        here = f"{name} on {socket.gethostname()}"
        self.broadcast(name, lambda: made.append(make()))
        if self.store is None:
            return made[0] if made else make()
        if self.rank > 0 and self.local_rank > 0:
            self._value_or_exit(self._answer(here))
            return make()
        try:
            thing = made[0] if made else make()
        except BaseException as error:
            self._tell(here, {"status": status_of(error)})
            raise
        self._tell(here, {"value": None})
        return thing

    def join(self) -> None:
        """Form a process group on the CPU, once, for work that needs no Lightning strategy."""
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore

        if self.world_size > 1 and not dist.is_initialized():
            assert self.store is not None
            store = PrefixStore("group", self.store)
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.world_size, timeout=timedelta(hours=12)
            )

    def leave(self) -> None:
        """Wait for all processes and destroy the group."""
        import torch.distributed as dist

        if self.world_size > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def _tell(self, name: str, answer: dict[str, Any]) -> None:
        text = json.dumps(answer)
        if self.store is not None:
            self.store.set(f"trilemma/{name}", text)
        elif self.world_size == 1:  # processes started later inherit the environment
            os.environ[_DECISIONS] = json.dumps({**json.loads(os.environ.get(_DECISIONS, "{}")), name: text})

    def _answer(self, name: str) -> dict[str, Any]:
        if self.store is None:
            answer: dict[str, Any] = json.loads(json.loads(os.environ[_DECISIONS])[name])
            return answer
        import torch.distributed as dist

        pause, longest = _POLL_SECONDS
        end: float | None = None
        try:
            # Without a timeout: rank 0 may train a first stage. Polled: a blocking wait in the store would delay signals.
            while not self.store.check([f"trilemma/{name}"]):
                time.sleep(pause)
                pause = min(2 * pause, longest)
                if status := signals.asked():  # rank 0 usually got the signal too, and answers with its status
                    end = end or time.monotonic() + _FAREWELL
                    if time.monotonic() > end:
                        raise SystemExit(status)
            answer = json.loads(self.store.get(f"trilemma/{name}"))
            if "status" in answer:
                self.store.add(f"trilemma/{name} heard", 1)
        except dist.DistError:  # rank 0 has ended and printed why
            raise SystemExit(FAILED) from None
        return answer

    def _value_or_exit(self, answer: dict[str, Any]) -> Any:
        if "status" in answer:
            raise SystemExit(answer["status"])
        return answer["value"]

    def _wait_until_heard(self, name: str) -> None:
        end = time.monotonic() + _FAREWELL
        while self.store is not None and time.monotonic() < end:
            if self.store.add(f"trilemma/{name} heard", 0) >= self.world_size - 1:
                return
            time.sleep(_POLL_SECONDS[0])


@cache
def this_job() -> Job:
    """Build the job of this process.

    Raises:
        UserError: If SLURM gave several tasks and srun did not start them.
        TrainingError: If the processes cannot meet.
    """
    where = place()
    store = None
    if where.world_size > 1 and where.started_by == "torchrun":
        agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        hosts = where.rank == 0 and not agents
        store = _store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), hosts=hosts)
    elif where.world_size > 1 and where.started_by == "srun":
        from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

        step = 31 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ.get("SLURM_STEP_ID", "0"))
        port = 25000 + step % 7000  # below the range of ephemeral ports
        store = _store(SLURMEnvironment().main_address, port, hosts=where.rank == 0)
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    return Job(where.rank, where.world_size, where.local_rank, slurm_id(), restarts, store)


def leave_group() -> None:
    """Destroy this process's group on the CPU, if it is in one: at exit, gloo's threads would abort the process now and then."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized() and dist.get_backend() == "gloo":
        with suppress(RuntimeError):
            dist.destroy_process_group()


def status_of(error: BaseException) -> int:
    """Find the exit status that an error ends a program with."""
    if isinstance(error, Stopped):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return REFUSED if isinstance(error, UserError) else FAILED


def _store(host: str, port: int, *, hosts: bool) -> Store:
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    end = time.monotonic() + _PORT_IN_USE
    while True:
        try:
            return TCPStore(host, port, is_master=hosts, wait_for_workers=False, timeout=timedelta(minutes=5))
        except (dist.DistError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
        if hosts and time.monotonic() < end:  # the port is still held by this job's killed predecessor
            time.sleep(1)
            continue
        raise TrainingError(
            f"{socket.gethostname()} cannot meet the other processes of this job at {host}:{port} ({reason}): "
            "see that the nodes resolve each other's names, or set MASTER_ADDR"
        )
