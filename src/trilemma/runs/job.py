"""The job that this process belongs to: who it is in it, and what the first process decides for all."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store

from trilemma.errors import UserError

T = TypeVar("T")

_DECISIONS = "TRILEMMA_DECISIONS"  # how they reach the processes that Lightning starts on this machine
_PATIENCE = timedelta(hours=2)  # what the first process does before all others: a data set decoded, its codes computed


@dataclass
class Job:
    """Processes that do one thing together.

    Attributes:
        rank: This process's number, 0 for the first.
        world_size: How many there are, as far as is known: where Lightning is still to start the others, this is 1.
        local_rank: This process's number on its node.
        slurm_id: Number of the SLURM job, with its array index (`17_3`), if there is one.
        restarts: How often SLURM has requeued it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    slurm_id: str | None = None
    restarts: int = 0
    _store: Store | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def decide(self, name: str, make: Callable[[], T]) -> T:
        """What the first process makes of a question; the others wait for it, and end with it if it fails.

        Args:
            name: Of the question; each is asked once, and by every process.
            make: Called in the first process only. What it returns can be written as JSON.

        Raises:
            UserError: That of `make`, in the first process. The others end silently with the same status.
        """
        if not self.is_first:
            answer = self._answer(name)
            if "status" in answer:
                raise SystemExit(answer["status"])
            value: T = answer["value"]
            return value
        try:
            made = make()
        except BaseException as error:
            status = 2 if isinstance(error, UserError) else error.code if isinstance(error, SystemExit) else 1
            self._tell(name, {"status": status})
            raise
        self._tell(name, {"value": made})
        return made

    def join(self) -> None:
        """Form a process group on the CPU, for work that needs no strategy of Lightning's; once."""
        if self.world_size > 1 and not dist.is_initialized():
            assert self._store is not None
            store = PrefixStore("group", self._store)
            dist.init_process_group(
                "gloo", store=store, rank=self.rank, world_size=self.world_size, timeout=timedelta(hours=12)
            )

    def leave(self) -> None:
        """Wait for all and dissolve the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()

    def _tell(self, name: str, answer: dict[str, Any]) -> None:
        text = json.dumps(answer)
        if self._store is not None:
            self._store.set(f"trilemma/{name}", text)
        elif self.world_size == 1:  # others may be started later, and inherit it
            os.environ[_DECISIONS] = json.dumps({**json.loads(os.environ.get(_DECISIONS, "{}")), name: text})

    def _answer(self, name: str) -> dict[str, Any]:
        if self._store is None:
            answer: dict[str, Any] = json.loads(json.loads(os.environ[_DECISIONS])[name])
            return answer
        try:
            self._store.wait([f"trilemma/{name}"], _PATIENCE)
            answer = json.loads(self._store.get(f"trilemma/{name}"))
        except dist.DistError:  # the first process is gone, and has said why
            raise SystemExit(1) from None
        return answer


@cache
def this_job() -> Job:
    """The job of this process, from its environment: srun's, torchrun's, Lightning's own or none.

    Raises:
        UserError: If SLURM gave several tasks and srun did not start them.
    """
    environment = os.environ
    slurm: dict[str, Any] = {"slurm_id": _slurm_id(), "restarts": int(environment.get("SLURM_RESTART_COUNT", "0"))}
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, world, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        store = None
        if world > 1:
            hosts = environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and rank == 0
            store = _store(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), hosts=hosts)
        return Job(rank, world, local, **slurm, _store=store)
    if _is_slurm_job():
        if "SLURM_STEP_NUM_TASKS" not in environment and int(environment.get("SLURM_NTASKS", "1")) > 1:
            raise UserError(
                f"SLURM gave this job {environment['SLURM_NTASKS']} tasks, and srun did not start them: put srun before python"
            )
        world = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        rank, local = int(environment.get("SLURM_PROCID", "0")), int(environment.get("SLURM_LOCALID", "0"))
        store = None
        if world > 1:
            from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

            port = 25000 + int(environment["SLURM_JOB_ID"]) % 7000  # below those that systems hand out
            store = _store(SLURMEnvironment().main_address, port, hosts=rank == 0)
        return Job(rank, world, local, **slurm, _store=store)
    if (
        int(environment.get("LOCAL_RANK", "0")) > 0 and "WORLD_SIZE" in environment
    ):  # started by Lightning's first process
        world, local = int(environment["WORLD_SIZE"]), int(environment["LOCAL_RANK"])
        return Job(local, world, local)
    return Job()


def _is_slurm_job() -> bool:
    # Lightning's own rule: a shell of salloc or srun --pty is no job.
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def _slurm_id() -> str | None:
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _store(host: str, port: int, *, hosts: bool) -> Store:
    try:
        return TCPStore(host, port, is_master=hosts, wait_for_workers=False, timeout=timedelta(minutes=5))
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{socket.gethostname()} cannot meet the other processes of this job at {host}:{port} ({reason}): "
            "see that the nodes resolve each other's names, or set MASTER_ADDR"
        ) from None
