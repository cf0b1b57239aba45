"""What goes over the links in a step, and how long that takes at best.

All of it is arithmetic on line rates: nothing here was measured on a cluster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from trilemma.planning.estimates.gpus import GPU
from trilemma.planning.estimates.layout import Layout
from trilemma.planning.estimates.sizes import Sizes

BUCKET = 25 * 2**20
"""Bytes of a bucket of DDP (torch's default)."""


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """The network between nodes.

    Attributes:
        node_gbits: 10^9 bits a second out of a node, all its adapters together, each way.
        efficiency: Share of line rates that collectives reach, here and within the node.
        latency: Seconds from node to node.
    """

    node_gbits: float = 200.0
    efficiency: float = 0.8
    latency: float = 10e-6

    def bandwidth(self, gpu: GPU, layout: Layout) -> float:
        """Bytes a second past the narrowest place of a ring over all GPUs."""
        narrowest = gpu.link * 1e9
        if layout.num_nodes > 1:
            narrowest = min(narrowest, self.node_gbits * 1e9 / 8)
        return self.efficiency * narrowest


@dataclass(frozen=True, kw_only=True)
class Communication:
    """What the links carry in one backward or forward pass.

    Attributes:
        forward: Seconds of what belongs to the forward pass.
        backward: Seconds of what belongs to the backward pass.
        unhidden: Seconds of both that nothing can hide: the first piece, or the last.
        bytes_per_gpu: What each GPU sends.
        formula: In words.
    """

    forward: float = 0.0
    backward: float = 0.0
    unhidden: float = 0.0
    bytes_per_gpu: float = 0.0
    formula: str = "none: one GPU"

    @property
    def seconds(self) -> float:
        """All of it, one after another."""
        return self.forward + self.backward

    def exposed(self, forward: float, backward: float, *, overlap: bool = True) -> float:
        """Seconds by which it lengthens a step whose passes take so long.

        With `overlap` it runs beside the pass that it belongs to, but for the piece that cannot.
        """
        if not overlap:
            return self.seconds
        hidden_late = max(0.0, self.forward - forward) + max(0.0, self.backward - backward)
        return max(hidden_late, self.unhidden)


def communication(sizes: Sizes, gpu: GPU, layout: Layout, fabric: Fabric) -> Communication:
    """What a step of a strategy sends.

    DDP sums the gradients of all GPUs in buckets while the backward pass goes on: a ring sends 2 (N - 1)/N of them from each
    GPU, past the narrowest link once, and a bucket waits 2 log2(n) times for the next node (a tree). FSDP gathers the weights,
    block by block, for the forward and again for the backward pass (in bf16-mixed precision those of blocks in bfloat16), and
    sums and shares out the gradients in their own type: (N - 1)/N of them each time, in rings of n - 1 waits.
    """
    N, n = layout.world_size, layout.num_nodes
    if N == 1:
        return Communication()
    bandwidth = fabric.bandwidth(gpu, layout)
    share = (N - 1) / N
    if layout.strategy == "fsdp":
        wait = (sizes.num_blocks + 1) * (n - 1) * fabric.latency
        in_blocks = sizes.weights - sizes.outside_blocks
        gathered = share * (layout.gathered_share * in_blocks + sizes.outside_blocks)
        summed = share * sizes.weights
        largest = max(layout.gathered_share * sizes.largest_block, sizes.outside_blocks)
        first = share * largest / bandwidth + (n - 1) * fabric.latency
        last = share * max(sizes.largest_block, sizes.outside_blocks) / bandwidth + (n - 1) * fabric.latency
        return Communication(
            forward=gathered / bandwidth + wait,
            backward=(gathered + summed) / bandwidth + 2 * wait,
            unhidden=first + last,
            bytes_per_gpu=2 * gathered + summed,
            formula="(N-1)/N x (weights gathered twice, gradients shared out)",
        )
    buckets = max(1, math.ceil(sizes.weights / BUCKET))
    wait = 2 * math.log2(n) * fabric.latency if n > 1 else 0.0
    seconds = 2 * share * sizes.weights / bandwidth + buckets * wait
    return Communication(
        backward=seconds,
        unhidden=seconds / buckets,
        bytes_per_gpu=2 * share * sizes.weights,
        formula="2 (N-1)/N x gradients",
    )
