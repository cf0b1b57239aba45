"""What would make a run fit that does not."""

from __future__ import annotations

from dataclasses import replace

from trilemma.planning.estimates.gpus import GPUS
from trilemma.planning.estimates.layout import Layout
from trilemma.planning.figures import Plan
from trilemma.planning.measured import Measured


def ways_to_fit(plan: Plan, measured: Measured) -> tuple[str, ...]:
    """Settings under which a run would fit, the least change first.

    Args:
        plan: One that does not fit.
        measured: Its model's steps.
    """

    def fits(layout: Layout, batch: int = plan.batch_per_gpu, *, recomputes: bool = plan.recomputes) -> bool:
        return plan.with_work(measured.step(batch, layout, recomputes=recomputes), layout).fits

    shared = replace(plan.layout, strategy="fsdp")
    can_share = plan.layout.strategy != "fsdp" and shared.world_size > 1 and plan.shardable
    can_recompute = bool(measured.blocks) and not plan.recomputes
    found = []
    if can_share and fits(shared):
        found.append("trainer=fsdp")
    if can_recompute and fits(plan.layout, recomputes=True):
        found.append("activation_checkpointing=true")
    if not found and can_share and can_recompute and fits(shared, recomputes=True):
        found.append("trainer=fsdp activation_checkpointing=true")
    parts = 2
    while plan.batch_per_gpu % parts == 0:
        size = plan.batch_per_gpu // parts
        if fits(plan.layout, size):
            accumulated = parts * plan.num_accumulated
            found.append(
                f"data.batch_size={size * plan.layout.world_size} trainer.accumulate_grad_batches={accumulated}"
            )
            break
        parts *= 2
    larger = [gpu.name for gpu in GPUS.values() if gpu.memory > plan.gpu.memory and replace(plan, gpu=gpu).fits]
    return (*found, *(f"plan.gpu={name}" for name in larger[:1]))
