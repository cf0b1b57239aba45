"""A run on paper: how it is laid out, what it holds, how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError
from trilemma.planning.cluster import check_assumptions, fabric_of, has_bucket_view, layout_of
from trilemma.planning.estimates.communication import Fabric
from trilemma.planning.estimates.gpus import GPU, find_gpu
from trilemma.planning.estimates.layout import Layout
from trilemma.planning.estimates.memory import MemoryRow, memory_rows
from trilemma.planning.estimates.sizes import Sizes, measure_sizes
from trilemma.planning.estimates.step import StepWork
from trilemma.planning.estimates.timing import StepTime, step_time
from trilemma.planning.measured import Measured
from trilemma.planning.model import plan_model

_PRECISIONS = {
    "32-true": torch.float32,
    "32": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run on paper.

    Attributes:
        name: Of the experiment.
        layout: How it lies on the cluster.
        gpu: On which GPU.
        memory_share: Share of its memory that is counted on.
        precision: Of the trainer.
        matrix_precision: In which matrices are multiplied.
        utilisation: Share of the GPU's best rate that is assumed.
        fabric: The network that is assumed.
        batch_per_gpu: Images that one GPU gets at once.
        num_accumulated: Batches an update.
        sizes: What stands in memory.
        optimiser: Class of the optimiser.
        work: What a batch takes on one GPU.
        recomputes: Whether activations are computed twice instead of kept.
        bucket_view: Whether DDP's gradients lie in its buckets.
        time: Of an update.
        num_updates: Length of the run.
        num_train_images: Where known.
        notes: What was assumed.
        shardable: Whether the weights can be sharded over GPUs.
    """

    name: str
    layout: Layout
    gpu: GPU
    memory_share: float
    precision: str
    matrix_precision: torch.dtype
    utilisation: float
    fabric: Fabric
    batch_per_gpu: int
    num_accumulated: int
    sizes: Sizes
    optimiser: str
    work: StepWork
    recomputes: bool
    bucket_view: bool
    time: StepTime
    num_updates: int
    num_train_images: int | None
    notes: tuple[str, ...]
    shardable: bool

    @property
    def batch(self) -> int:
        """Images an update."""
        return self.batch_per_gpu * self.num_accumulated * self.layout.world_size

    @property
    def rows(self) -> list[MemoryRow]:
        """Memory of one GPU."""
        return memory_rows(self.sizes, self.work, self.layout, bucket_view=self.bucket_view)

    def with_work(self, work: StepWork, layout: Layout) -> Plan:
        """The same run computed in another way."""
        return replace(self, work=work, layout=layout)

    @property
    def memory(self) -> int:
        """Bytes of one GPU at the height of a step."""
        return sum(row.bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether that is less than what is counted on."""
        return self.memory <= self.memory_share * self.gpu.memory * 2**30


def make_plan(cfg: DictConfig) -> tuple[Plan, Measured]:
    """Work out a run.

    Args:
        cfg: As composed, with `debug=plan`.

    Returns:
        The plan, and the model's steps, of which more can be measured.

    Raises:
        UserError: If the configuration is wrong, or names a GPU, a strategy or a precision that is not known here.
    """
    check_assumptions(cfg)
    planned = plan_model(cfg)
    model, node = planned.model, cfg.plan
    gpu = find_gpu(node.gpu)
    precision = str(cfg.trainer.precision)
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision={precision}: a plan knows {', '.join(_PRECISIONS)}")
    dtype = _PRECISIONS[precision]
    if precision.endswith("-true") and dtype != torch.float32:
        model.to(dtype)
    layout = layout_of(cfg)
    if layout.strategy == "fsdp" and not model.shardable:
        raise UserError("trainer.strategy: an adversarial family trains on one device or with trainer=ddp")
    if cfg.data.batch_size % layout.world_size:
        raise UserError(
            f"data.batch_size={cfg.data.batch_size} is the batch of all devices: make it a multiple of {layout.world_size}"
        )
    sizes = measure_sizes(model, optimiser=planned.optimiser_bytes, num_averages=_num_averages(cfg))
    measured = Measured(planned, dtype if precision.endswith("-mixed") else None)
    batch = cfg.data.batch_size // layout.world_size
    recomputes = bool(cfg.get("activation_checkpointing", False))
    work = measured.step(batch, layout, recomputes=recomputes)
    fabric = fabric_of(cfg)
    num_accumulated = int(cfg.trainer.accumulate_grad_batches)
    time = step_time(
        work,
        sizes,
        gpu,
        layout,
        fabric,
        precision=dtype,
        utilisation=node.utilisation,
        num_accumulated=num_accumulated,
    )
    plan = Plan(
        name=cfg.experiment_name,
        layout=layout,
        gpu=gpu,
        memory_share=node.memory_share,
        precision=precision,
        matrix_precision=dtype,
        utilisation=node.utilisation,
        fabric=fabric,
        batch_per_gpu=batch,
        num_accumulated=num_accumulated,
        sizes=sizes,
        optimiser=planned.optimiser,
        work=work,
        recomputes=recomputes,
        bucket_view=has_bucket_view(cfg),
        time=time,
        num_updates=cfg.trainer.max_steps,
        num_train_images=planned.num_train_images,
        notes=tuple(planned.notes),
        shardable=model.shardable,
    )
    return plan, measured


def _num_averages(cfg: DictConfig) -> int:
    return len(OmegaConf.select(cfg, "callbacks.ema.decays") or ())
