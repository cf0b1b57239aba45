"""Gather tensors from all processes of a job."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def gather_ranks(x: Tensor) -> Tensor:
    """Concatenate the tensors of all ranks; outside a process group, return the tensor itself.

    Args:
        x: [n, ...], of one shape and dtype on all ranks.

    Returns:
        [world size * n, ...], in the order of ranks, without gradients across ranks.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return x
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)
