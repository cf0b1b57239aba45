"""Work shared by the ranks of a distributed run, gathered exactly: no image twice, none missing, all in their order.

A sampler that pads its shards repeats images and biases every metric. Here shards are as uneven as they come, and every
rank ends with the rows of one process, bit for bit, as long as the ranks run the same kernels (one type of device, and
the same number of threads). Without a process group all of it is the plain computation.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def share(num: int, *, block: int = 1) -> Tensor:
    """Positions below `num` that fall to this rank, int64 [n], ascending: blocks of neighbours are dealt in turn.

    Args:
        num: Number of images of all ranks together.
        block: Neighbours that stay together; n may be 0 where there are fewer blocks than ranks.
    """
    return _shares(num, block)[dist.get_rank() if _is_distributed() else 0]


def gather(rows: Tensor, *, num: int, block: int = 1) -> Tensor:
    """The rows of all ranks, each at its position, on every rank: [num, ...] on the CPU.

    Args:
        rows: Of this rank's `share(num, block=block)`, [n, ...], in that order; shape and type but for n are those of
            the other ranks.
        num: Number of rows of all ranks together.
        block: As in `share`.

    Raises:
        ValueError: If there are not as many rows as positions.
    """
    num_mine = len(share(num, block=block))
    if len(rows) != num_mine:
        raise ValueError(f"{len(rows)} rows for a share of {num_mine} positions")
    if not _is_distributed():
        return rows.cpu()
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    # Collectives take equal shapes: the largest share travels from every rank, and what fills it up is cut off.
    shares = _shares(num, block)
    sent = rows.new_zeros(max(map(len, shares)), *rows.shape[1:], device=device)
    sent[: len(rows)] = rows
    received = [torch.empty_like(sent) for _ in shares]
    dist.all_gather(received, sent)
    everything = torch.empty(num, *rows.shape[1:], dtype=rows.dtype)
    for positions, part in zip(shares, received, strict=True):
        everything[positions] = part[: len(positions)].cpu()
    return everything


def _shares(num: int, block: int) -> list[Tensor]:
    """The positions of every rank."""
    positions = torch.arange(num)
    world = dist.get_world_size() if _is_distributed() else 1
    return [positions[positions // block % world == rank] for rank in range(world)]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
