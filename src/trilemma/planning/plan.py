"""A run on paper: what it holds, how long it takes, what would make it fit, how it goes with the number of nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError
from trilemma.planning.cluster import GPUS, Setup, Strategy, setup_of
from trilemma.planning.model import PlannedModel, plan_model
from trilemma.planning.sizes import Sizes, blocks_of, measure_sizes
from trilemma.planning.step import StepWork, measure_step
from trilemma.planning.timing import StepTime, step_time

Fixed = Literal["gpu", "all"]
"""What stays when nodes are added: the batch of a GPU (weak scaling), or that of all (strong scaling)."""

ENOUGH = 0.8
MOST_NODES = 4096
GATHERED_BLOCKS = 2
"""Blocks that FSDP holds whole at once: the one that runs and the one that is fetched meanwhile."""

Row = tuple[str, int, str]
"""Something that takes memory: what it is, its bytes, how they were found."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on paper."""

    name: str  # of the experiment
    num_updates: int
    model: PlannedModel
    sizes: Sizes
    setup: Setup

    def under(self, **settings: Any) -> Plan:
        """The same run under other settings of its `Setup`."""
        return replace(self, setup=replace(self.setup, **settings))

    @property
    def work(self) -> StepWork:
        """What a batch takes on one GPU."""
        setup = self.setup
        mixed = setup.dtype if setup.precision.endswith("-mixed") else None
        keeps_copies = setup.strategy != "fsdp" or setup.gathered_share == 1.0
        return _measured(self.model, setup.batch_per_gpu, mixed, setup.recomputes, keeps_copies)

    @property
    def otherwise(self) -> StepWork | None:
        """The same with activations computed twice, or if they are, kept; None where there are no blocks to recompute."""
        return self.under(recomputes=not self.setup.recomputes).work if blocks_of(self.model.family) else None

    @property
    def time(self) -> StepTime:
        """Of an update."""
        return step_time(self.work, self.sizes, self.setup)

    @property
    def rows(self) -> list[Row]:
        """Memory of one GPU."""
        return memory_rows(self.sizes, self.work, self.setup)

    @property
    def memory(self) -> int:
        """Bytes of one GPU at the height of a step."""
        return sum(size for _, size, _ in self.rows)

    @property
    def fits(self) -> bool:
        """Whether that is less than what is counted on."""
        return bool(self.memory <= self.setup.assumed.memory_share * self.setup.gpu.memory * 2**30)


@cache
def _measured(model: PlannedModel, size: int, mixed: torch.dtype | None, recomputes: bool, copies: bool) -> StepWork:
    return measure_step(model.family, model.batch(size), mixed=mixed, recomputes=recomputes, keeps_copies=copies)


def make_plan(cfg: DictConfig) -> Plan:
    """Work out a run, composed with `debug=plan`.

    Raises:
        UserError: If the configuration is wrong, or names a GPU, a strategy or a precision that is not known here.
    """
    model = plan_model(cfg)
    setup = setup_of(cfg)
    if setup.strategy == "fsdp" and not model.family.shardable:
        raise UserError("trainer.strategy: an adversarial family trains on one device or with trainer=ddp")
    if setup.precision.endswith("-true"):
        model.family.to(setup.dtype)
    num_averages = len(OmegaConf.select(cfg, "callbacks.ema.decays") or ())
    return Plan(
        name=cfg.experiment_name,
        num_updates=cfg.trainer.max_steps,
        model=model,
        sizes=measure_sizes(model.family, optimiser=model.optimiser_bytes, num_averages=num_averages),
        setup=setup,
    )


def memory_rows(sizes: Sizes, work: StepWork, setup: Setup) -> list[Row]:
    """Tell what one GPU holds at the batch of `work`; the sum of all rows is the height."""
    sharded = setup.strategy == "fsdp"
    N, share = (setup.world_size, f"1/{setup.world_size} of all") if sharded else (1, "")
    kept = f"{work.kept_bytes / 2**30:.2f} kept for the backward pass"
    activations = ("activations", work.peak_bytes, kept)
    rows = [
        ("weights", -(-sizes.weights // N), share),
        ("frozen weights, buffers", sizes.frozen, ""),
        ("states of the optimiser", -(-sizes.optimiser // N), share),
        ("averages", -(-sizes.averages // N), share),
    ]
    if sharded:
        block = round(setup.gathered_share * sizes.largest_block)
        in_use = GATHERED_BLOCKS * block + sizes.outside_blocks
        return [
            *rows,
            ("gradients", -(-sizes.weights // N), share),
            ("weights in use", in_use, "two blocks gathered, and what lies in none"),
            ("gradients in use", block + sizes.largest_block, "of a block, and the buffer that is sent"),
            activations,
        ]
    in_buckets = setup.strategy == "ddp" and setup.bucket_view
    if setup.strategy == "ddp":
        where = "the gradients lie in them" if in_buckets else "beside the gradients"
        rows.append(("buckets of gradients", sizes.weights, f"of DDP, {where}"))
    beside = ("activations, gradients", work.peak_with_gradients_bytes, f"at the height; {kept}")
    return [*rows, activations if in_buckets else beside]


def ways_to_fit(plan: Plan) -> list[str]:
    """Settings under which a run that does not fit would, the least change first."""
    setup, family = plan.setup, plan.model.family
    changes: dict[str, dict[str, Any]] = {}
    if family.shardable and setup.world_size > 1 and setup.strategy != "fsdp":
        changes["trainer=fsdp"] = {"strategy": "fsdp"}
    if not setup.recomputes and blocks_of(family):
        changes["activation_checkpointing=true"] = {"recomputes": True}
    found = [text for text, change in changes.items() if plan.under(**change).fits]
    if not found and len(changes) == 2 and plan.under(strategy="fsdp", recomputes=True).fits:
        found = [" ".join(changes)]
    parts = 2
    while setup.batch_per_gpu % parts == 0:
        size = setup.batch_per_gpu // parts
        if plan.under(batch_per_gpu=size).fits:
            accumulated = parts * setup.num_accumulated
            found.append(f"data.batch_size={size * setup.world_size} trainer.accumulate_grad_batches={accumulated}")
            break
        parts *= 2
    larger = (gpu for gpu in GPUS.values() if gpu.memory > setup.gpu.memory and plan.under(gpu=gpu).fits)
    return found + [f"plan.gpu={gpu.name}" for gpu in larger][:1]


def time_on(plan: Plan, strategy: Strategy, num_nodes: int, fixed: Fixed, *, overlap: bool = True) -> StepTime:
    """Estimate a step on so many nodes, with operations in proportion to the images of a GPU."""
    setup = replace(plan.setup, num_nodes=num_nodes, strategy=strategy)
    images = plan.setup.num_nodes / num_nodes if fixed == "all" else 1.0
    return step_time(plan.work, plan.sizes, setup, images=images, overlap=overlap)


def falls_at(plan: Plan, strategy: Strategy, fixed: Fixed, *, overlap: bool, below: float = ENOUGH) -> int | None:
    """The least number of nodes with an efficiency under `below`; None up to `MOST_NODES`."""
    nodes = range(1, MOST_NODES + 1)
    return next((n for n in nodes if time_on(plan, strategy, n, fixed, overlap=overlap).efficiency < below), None)
