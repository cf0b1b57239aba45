"""How a run's step time goes with the number of nodes, on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from trilemma.errors import UserError
from trilemma.planning.estimates.layout import Layout, Strategy
from trilemma.planning.estimates.step import StepWork
from trilemma.planning.estimates.timing import StepTime, step_time
from trilemma.planning.figures import Plan
from trilemma.planning.table import columns, seconds

Fixed = Literal["gpu", "all"]
"""What stays when nodes are added: the batch of a GPU (weak scaling), or that of all (strong scaling)."""

ENOUGH = 0.8
_MOST_NODES = 4096


@dataclass(frozen=True, kw_only=True)
class Point:
    """A number of nodes.

    Attributes:
        layout: How the job lies.
        batch_per_gpu: Images of a GPU; of a batch that does not divide, the mean.
        overlapped: Time where communication runs beside the computing.
        plain: Time where it does not.
    """

    layout: Layout
    batch_per_gpu: float
    overlapped: StepTime
    plain: StepTime


def point(plan: Plan, strategy: Strategy, num_nodes: int, fixed: Fixed) -> Point:
    """Estimate a step on so many nodes, with operations in proportion to the images."""
    layout = replace(plan.layout, num_nodes=num_nodes, strategy=strategy)
    batch = float(plan.batch_per_gpu)
    if fixed == "all":
        batch *= plan.layout.world_size / layout.world_size
    factor = batch / plan.batch_per_gpu
    work = replace(
        plan.work,
        forward_flops=round(plan.work.forward_flops * factor),
        backward_flops=round(plan.work.backward_flops * factor),
    )
    overlapped, plain = (_time(plan, work, layout, overlap=overlap) for overlap in (True, False))
    return Point(layout=layout, batch_per_gpu=batch, overlapped=overlapped, plain=plain)


def _time(plan: Plan, work: StepWork, layout: Layout, *, overlap: bool) -> StepTime:
    return step_time(
        work,
        plan.sizes,
        plan.gpu,
        layout,
        plan.fabric,
        precision=plan.matrix_precision,
        utilisation=plan.utilisation,
        num_accumulated=plan.num_accumulated,
        overlap=overlap,
    )


def falls_at(plan: Plan, strategy: Strategy, fixed: Fixed, *, overlap: bool, below: float = ENOUGH) -> int | None:
    """The least number of nodes with an efficiency under `below`; None up to 4,096."""
    for num_nodes in range(1, _MOST_NODES + 1):
        found = point(plan, strategy, num_nodes, fixed)
        if (found.overlapped if overlap else found.plain).efficiency < below:
            return num_nodes
    return None


def scaling_table(plan: Plan, nodes: Sequence[int]) -> str:
    """Step time and efficiency by strategy and number of nodes, once with the batch of a GPU fixed and once that of all.

    Raises:
        UserError: If a number of nodes is not one.
    """
    if not nodes or any(not isinstance(n, int) or n < 1 for n in nodes):
        raise UserError(f"plan.nodes={list(nodes)}: a list of numbers of nodes, each at least 1")
    strategies: tuple[Strategy, ...] = ("ddp", "fsdp") if plan.shardable else ("ddp",)
    sections = []
    for fixed in ("gpu", "all"):
        size = f"{plan.batch_per_gpu} images a GPU" if fixed == "gpu" else f"{plan.batch:,} images in all"
        for strategy in strategies:
            rows: list[tuple[str, ...]] = [
                ("nodes", "GPUs", "a GPU", "computing", "sending", "step", "efficiency", "without overlap")
            ]
            rows += (_row(point(plan, strategy, n, fixed)) for n in nodes)
            title = f"Scaling with {size}, {strategy} (nodes of {plan.layout.gpus_per_node} {plan.gpu.name})"
            sections.append(f"{title}\n{columns(rows, words=False)}\n{_falls(plan, strategy, fixed)}")
    return "\n\n".join(sections)


def _row(found: Point) -> tuple[str, ...]:
    time = found.overlapped
    return (
        f"{found.layout.num_nodes}",
        f"{found.layout.world_size}",
        f"{found.batch_per_gpu:g}",
        seconds(time.computing),
        seconds(time.communication.seconds),
        seconds(time.seconds),
        f"{time.efficiency:.1%}",
        f"{found.plain.efficiency:.1%}",
    )


def _falls(plan: Plan, strategy: Strategy, fixed: Fixed) -> str:
    words = []
    for overlap, name in ((True, ""), (False, " without overlap")):
        num_nodes = falls_at(plan, strategy, fixed, overlap=overlap)
        where = f"at {num_nodes} nodes" if num_nodes else f"not up to {_MOST_NODES:,} nodes"
        words.append(f"{where}{name}")
    return f"Efficiency falls under {ENOUGH:.0%} {', '.join(words)}."
