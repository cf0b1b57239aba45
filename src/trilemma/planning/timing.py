"""How long a step takes, and what of it goes over the links: arithmetic on data sheets and line rates, measured nowhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trilemma.planning.cluster import Setup
from trilemma.planning.sizes import Sizes
from trilemma.planning.step import StepWork

BUCKET = 25 * 2**20
"""Bytes of a bucket of DDP (torch's default)."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one update of the weights."""

    forward: float
    backward: float
    optimiser: float  # moving weights, gradients, states and averages through memory once
    sending: float  # of the last backward pass, in which gradients are shared (and of each pass, with FSDP)
    exposed: float  # what communication adds to the step

    @property
    def computing(self) -> float:
        """Without communication."""
        return self.forward + self.backward + self.optimiser

    @property
    def seconds(self) -> float:
        """The step."""
        return self.computing + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the step that is not spent waiting for the network."""
        return self.computing / self.seconds


def communication(sizes: Sizes, setup: Setup) -> tuple[float, float, float]:
    """Seconds on the links that belong to the forward pass and to the backward pass, and of both what nothing can hide.

    DDP sums the gradients of all GPUs in buckets while the backward pass goes on: a ring sends 2 (N - 1)/N of them from each
    GPU, past the narrowest link once, and a bucket waits 2 log2(n) times for the next node (a tree). FSDP gathers the weights,
    block by block, for the forward and again for the backward pass (in bf16-mixed precision those of blocks in bfloat16), and
    sums and shares out the gradients in their own type: (N - 1)/N of them each time, in rings of n - 1 waits. The last bucket
    of DDP, the first and the last block of FSDP have nothing to run beside.
    """
    n, latency = setup.num_nodes, 1e-6 * setup.assumed.latency_us
    rate = (1 - 1 / setup.world_size) / setup.bandwidth  # seconds for each byte of the whole, sent once
    if setup.strategy != "fsdp":
        buckets = max(1, math.ceil(sizes.weights / BUCKET))
        seconds = 2 * rate * sizes.weights + buckets * 2 * math.log2(n) * latency
        return 0.0, seconds, seconds / buckets
    outside, share = sizes.outside_blocks, setup.gathered_share
    wait = (sizes.num_blocks + 1) * (n - 1) * latency
    gathering = rate * (share * (sizes.weights - outside) + outside) + wait
    sharing = rate * sizes.weights + wait
    ends = (rate * max(size * sizes.largest_block, outside) + (n - 1) * latency for size in (share, 1.0))
    return gathering, gathering + sharing, sum(ends)


def step_time(work: StepWork, sizes: Sizes, setup: Setup, *, images: float = 1.0, overlap: bool = True) -> StepTime:
    """Estimate an update.

    Args:
        work: Of one batch on one GPU.
        sizes: Of the model.
        setup: How it is computed.
        images: The batch of a GPU over that of `work`: operations go in proportion to it.
        overlap: Whether communication runs beside the pass that it belongs to, but for the piece that cannot.
    """
    rate = setup.rate * setup.assumed.utilisation / images
    forward, backward = work.forward_flops / rate, work.backward_flops / rate
    with_forward, with_backward, unhidden = communication(sizes, setup)
    exposed = sending = with_forward + with_backward
    if overlap:
        exposed = max(max(0.0, with_forward - forward) + max(0.0, with_backward - backward), unhidden)
    sharded = setup.strategy == "fsdp"
    # Weights, states and averages are read and written, gradients are read, weights once more for the averages.
    averaged = sizes.weights if sizes.averages else 0
    moved = 2 * (sizes.weights + sizes.optimiser + sizes.averages) + sizes.weights + averaged
    return StepTime(
        forward=setup.num_accumulated * forward,
        backward=setup.num_accumulated * backward,
        optimiser=moved / (setup.world_size if sharded else 1) / (setup.gpu.bandwidth * 1e9),
        sending=sending,
        exposed=exposed * (setup.num_accumulated if sharded else 1),
    )
