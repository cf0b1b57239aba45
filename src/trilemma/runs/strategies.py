"""How the processes of a run share its work."""

from __future__ import annotations

import inspect
from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class DDP(DDPStrategy):
    """Each process has the whole model and a part of every batch; gradients are averaged while they are computed.

    Buffers are not broadcast: what training notes in them (a codebook's averages, losses by time) is summed over processes where it
    is noted, and what a process counts for itself in a validation must stay its own.

    Args:
        gradient_as_bucket_view: Whether gradients lie in the buffers that are sent, which saves their size in memory.
        find_unused_parameters: Whether weights may have no part in a loss; looking for them costs time in every batch.
        timeout_minutes: How long a process waits for the others before it gives them up.
    """

    def __init__(
        self,
        *,
        gradient_as_bucket_view: bool = True,
        find_unused_parameters: bool = False,
        timeout_minutes: float = 30.0,
    ) -> None:
        parameters = inspect.signature(DistributedDataParallel).parameters  # the name changed in torch 2.13
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        super().__init__(
            **{buffers: False},
            gradient_as_bucket_view=gradient_as_bucket_view,
            find_unused_parameters=find_unused_parameters,
            timeout=timedelta(minutes=timeout_minutes),
        )


class HandAveragedDDP(DDPStrategy):
    """For families that average gradients by themselves: each process has the whole model, and nothing else is done.

    `DDP` trains them too, but keeps buffers for both networks' gradients that are never used.

    Args:
        timeout_minutes: See `DDP`.
    """

    def __init__(self, *, timeout_minutes: float = 30.0) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))

    def configure_ddp(self) -> None:
        """Give all processes the first one's weights and buffers."""
        assert self.model is not None
        broadcast_module(self.model)


def broadcast_module(module: nn.Module) -> None:
    """Give all processes the first one's weights and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        data: Tensor = tensor.detach()
        dist.broadcast(data, src=0)
