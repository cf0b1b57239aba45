"""What a GPU holds at the height of a training step."""

from __future__ import annotations

from dataclasses import dataclass

from trilemma.planning.estimates.layout import Layout
from trilemma.planning.estimates.sizes import Sizes
from trilemma.planning.estimates.step import StepWork

GATHERED_BLOCKS = 2
"""Units that FSDP holds whole at once: the one that runs and the one that is fetched meanwhile."""


@dataclass(frozen=True)
class MemoryRow:
    """Something that takes memory.

    Attributes:
        name: What it is.
        bytes: What it takes.
        note: How that was found.
    """

    name: str
    bytes: int
    note: str = ""


def memory_rows(sizes: Sizes, step: StepWork, layout: Layout, *, bucket_view: bool = False) -> list[MemoryRow]:
    """What one GPU holds; the sum of all rows is the height.

    Args:
        sizes: What stands.
        step: What a step takes at the batch of one GPU.
        layout: How the job lies on the cluster.
        bucket_view: Whether DDP's gradients lie in its buckets (`gradient_as_bucket_view`) instead of beside them.
    """
    if layout.strategy == "fsdp":
        return _sharded(sizes, step, layout)
    rows = [
        MemoryRow("weights", sizes.weights),
        MemoryRow("frozen weights, buffers", sizes.frozen),
        MemoryRow("states of the optimiser", sizes.optimiser),
        MemoryRow("averages", sizes.averages),
    ]
    if layout.strategy == "ddp":
        where = "the gradients lie in them" if bucket_view else "beside the gradients"
        rows.append(MemoryRow("buckets of gradients", sizes.weights, f"of DDP, {where}"))
    if layout.strategy == "ddp" and bucket_view:
        rows.append(MemoryRow("activations", step.peak_bytes, _kept(step)))
    else:
        rows.append(
            MemoryRow("activations, gradients", step.peak_with_gradients_bytes, f"at the height; {_kept(step)}")
        )
    return rows


def _sharded(sizes: Sizes, step: StepWork, layout: Layout) -> list[MemoryRow]:
    N, share = layout.world_size, f"1/{layout.world_size} of all"
    block = round(layout.gathered_share * sizes.largest_block)
    return [
        MemoryRow("weights", _share(sizes.weights, N), share),
        MemoryRow("frozen weights, buffers", sizes.frozen),
        MemoryRow("states of the optimiser", _share(sizes.optimiser, N), share),
        MemoryRow("averages", _share(sizes.averages, N), share),
        MemoryRow("gradients", _share(sizes.weights, N), share),
        MemoryRow(
            "weights in use",
            GATHERED_BLOCKS * block + sizes.outside_blocks,
            "two blocks gathered, and what lies in none",
        ),
        MemoryRow("gradients in use", block + sizes.largest_block, "of a block, and the buffer that is sent"),
        MemoryRow("activations", step.peak_bytes, _kept(step)),
    ]


def _share(size: int, world_size: int) -> int:
    return -(-size // world_size)


def _kept(step: StepWork) -> str:
    return f"{step.kept_bytes / 2**30:.2f} kept for the backward pass"
