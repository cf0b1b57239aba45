"""Point-to-point channels between the processes of a job, for anything that can be pickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore

from trilemma.distributed.job import Job
from trilemma.errors import TrainingError

_PATIENCE = timedelta(days=7)  # the others may wait this long while one computes


class Channels:
    """Connects every process of a job with rank 0.

    It is not torch's default group: libraries take part in that by themselves, and then wait for processes that do something else.

    Args:
        job: Of several processes, all of which make their lines at once.
    """

    def __init__(self, job: Job) -> None:
        assert job.store is not None
        self._is_first = job.is_first
        store = PrefixStore("lines", job.store)
        self._group: Any = dist.ProcessGroupGloo(store, job.rank, job.world_size, _PATIENCE)

    def send(self, what: Any, rank: int) -> None:
        """Send an object that can be pickled; raises as `receive` does."""
        content = torch.frombuffer(bytearray(pickle.dumps(what)), dtype=torch.uint8)
        size = torch.tensor([len(content)])
        self._pass(lambda: self._group.send([size], rank, 0))
        self._pass(lambda: self._group.send([content], rank, 0))

    def receive(self, rank: int) -> Any:
        """Receive an object from another process.

        Raises:
            TrainingError: In the first process, if the other is gone.
            SystemExit: In the others, which have nothing to add.
        """
        size = torch.zeros(1, dtype=torch.int64)
        self._pass(lambda: self._group.recv([size], rank, 0))
        content = torch.empty(int(size), dtype=torch.uint8)
        self._pass(lambda: self._group.recv([content], rank, 0))
        return pickle.loads(content.numpy().data)

    def _pass(self, transfer: Callable[[], Any]) -> None:
        try:
            transfer().wait()
        except RuntimeError as error:
            if not self._is_first:
                raise SystemExit(1) from None
            reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[
                0
            ]  # without gloo's source location and advice
            raise TrainingError(f"another process of this job is gone; it may have said why ({reason})") from None
