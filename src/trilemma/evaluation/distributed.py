"""Work shared by the ranks of a distributed run, gathered exactly: no image twice, none missing, all in their order.

A sampler that pads its shards repeats images and biases every metric. Here shards are as uneven as they come, and every
rank ends with the rows of one process, bit for bit, as long as the ranks run the same kernels (one type of device, and
the same number of threads). Without a process group all of it is the plain computation.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from trilemma.evaluation.extractor_base import Embedding, Extractor, Images


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


def embed_distributed(extractor: Extractor, images: Images) -> Embedding:
    """`extractor.embed`, with the batches dealt to the ranks; every rank gets all features and logits.

    Every batch is the one that a single process would form, so the features are that process's, bit for bit.

    Args:
        extractor: The same on every rank.
        images: uint8 [N, C, H, W], all of them on every rank.

    Raises:
        UserError: If the images do not fit the extractor.
    """
    if not _is_distributed():
        return extractor.embed(images)
    block = extractor.batch_size
    mine = share(len(images), block=block)
    # A rank without a batch learns the shapes from one image.
    seen = extractor.embed(images[mine] if len(mine) else images[:1]).rows(torch.arange(len(mine)))
    logits = None if seen.logits is None else gather(seen.logits, num=len(images), block=block)
    return Embedding(gather(seen.features, num=len(images), block=block), logits)


def _shares(num: int, block: int) -> list[Tensor]:
    """The positions of every rank."""
    positions = torch.arange(num)
    world = dist.get_world_size() if _is_distributed() else 1
    return [positions[positions // block % world == rank] for rank in range(world)]


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
