"""How long a step takes, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trilemma.planning.estimates.communication import Communication, Fabric, communication
from trilemma.planning.estimates.gpus import GPU
from trilemma.planning.estimates.layout import Layout
from trilemma.planning.estimates.sizes import Sizes
from trilemma.planning.estimates.step import StepWork


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one update of the weights.

    Attributes:
        forward: Computing the forward passes.
        backward: Computing the backward passes.
        optimiser: Moving weights, gradients, states and averages through memory once.
        communication: Of the last backward pass, in which gradients are shared (and of each pass, with FSDP).
        exposed: What communication adds to the step.
    """

    forward: float
    backward: float
    optimiser: float
    communication: Communication
    exposed: float

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


def step_time(
    work: StepWork,
    sizes: Sizes,
    gpu: GPU,
    layout: Layout,
    fabric: Fabric,
    *,
    precision: torch.dtype,
    utilisation: float,
    num_accumulated: int = 1,
    overlap: bool = True,
) -> StepTime:
    """Estimate an update.

    Args:
        work: Of one batch on one GPU.
        sizes: Of the model.
        gpu: Which.
        layout: How the job lies on the cluster.
        fabric: The network.
        precision: In which matrices are multiplied.
        utilisation: Share of the GPU's best rate that is reached.
        num_accumulated: Batches an update.
        overlap: Whether communication runs beside the computing.

    Raises:
        UserError: If the GPU cannot compute in that precision.
    """
    rate = gpu.operations(precision) * utilisation
    shared = layout.world_size if layout.strategy == "fsdp" else 1
    # Weights, states and averages are read and written, gradients are read, weights once more for the averages.
    averaged = sizes.weights if sizes.averages else 0
    moved = 2 * (sizes.weights + sizes.optimiser + sizes.averages) + sizes.weights + averaged
    sent = communication(sizes, gpu, layout, fabric)
    forward, backward = work.forward_flops / rate, work.backward_flops / rate
    exposed = sent.exposed(forward, backward, overlap=overlap)
    if layout.strategy == "fsdp":
        exposed *= num_accumulated
    return StepTime(
        forward=num_accumulated * forward,
        backward=num_accumulated * backward,
        optimiser=moved / shared / (gpu.bandwidth * 1e9),
        communication=sent,
        exposed=exposed,
    )
