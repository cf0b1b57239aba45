"""A run on paper: how it is laid out, what it holds, how long it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError
from trilemma.evaluation.plan.communication import Fabric
from trilemma.evaluation.plan.gpus import GPU, GPUS, find_gpu
from trilemma.evaluation.plan.layout import Layout, Strategy
from trilemma.evaluation.plan.memory import Row, memory_rows
from trilemma.evaluation.plan.sizes import Sizes, measure_sizes, units_of
from trilemma.evaluation.plan.step import StepWork, measure_step
from trilemma.evaluation.plan.timing import StepTime, step_time
from trilemma.models.adversarial import Adversarial
from trilemma.runs.plan.model import PlannedModel, plan_model

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
        checkpointed: The same where only the inputs of units are kept; None where there are no units.
        rows: Memory of one GPU.
        time: Of an update.
        num_updates: Length of the run.
        num_train_images: Where known.
        ways: Settings under which it would fit, where it does not.
        notes: What was assumed.
        adversarial: Whether two networks take turns: they are not shared out.
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
    checkpointed: StepWork | None
    rows: tuple[Row, ...]
    time: StepTime
    num_updates: int
    num_train_images: int | None
    ways: tuple[str, ...]
    notes: tuple[str, ...]
    adversarial: bool

    @property
    def batch(self) -> int:
        """Images an update."""
        return self.batch_per_gpu * self.num_accumulated * self.layout.world_size

    @property
    def memory(self) -> int:
        """Bytes of one GPU at the height of a step."""
        return sum(row.bytes for row in self.rows)

    @property
    def fits(self) -> bool:
        """Whether that is less than what is counted on."""
        return self.memory <= self.memory_share * self.gpu.memory * 2**30


def make_plan(cfg: DictConfig) -> Plan:
    """Work out a run.

    Args:
        cfg: As composed, with `debug=plan`.

    Raises:
        UserError: If the configuration is wrong, or names a GPU, a strategy or a precision that is not known here.
    """
    _check_assumptions(cfg)
    planned = plan_model(cfg)
    model, node = planned.model, cfg.plan
    gpu = find_gpu(node.gpu)
    precision = str(cfg.trainer.precision)
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision={precision}: a plan knows {', '.join(_PRECISIONS)}")
    dtype = _PRECISIONS[precision]
    if precision.endswith("-true") and dtype != torch.float32:
        model.to(dtype)
    layout = _layout(cfg)
    if layout.strategy == "fsdp" and isinstance(model, Adversarial):
        raise UserError("trainer.strategy: an adversarial family trains on one device or with trainer=ddp")
    if cfg.data.batch_size % layout.world_size:
        raise UserError(
            f"data.batch_size={cfg.data.batch_size} is the batch of all devices: make it a multiple of {layout.world_size}"
        )
    sizes = measure_sizes(model, optimiser=planned.optimiser_bytes, num_averages=_num_averages(cfg))
    measured = _Measured(planned, dtype if precision.endswith("-mixed") else None)
    batch = cfg.data.batch_size // layout.world_size
    work = measured.step(batch)
    rows = _rows(cfg, sizes, work, layout)
    fabric = Fabric(node_gbits=node.node_gbits, efficiency=node.network_efficiency, latency=1e-6 * node.latency_us)
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
        checkpointed=measured.checkpointed(batch),
        rows=tuple(rows),
        time=time,
        num_updates=cfg.trainer.max_steps,
        num_train_images=planned.num_train_images,
        ways=(),
        notes=tuple(planned.notes),
        adversarial=isinstance(model, Adversarial),
    )
    return plan if plan.fits else replace(plan, ways=tuple(_ways(cfg, plan, measured)))


def _check_assumptions(cfg: DictConfig) -> None:
    for key in ("utilisation", "memory_share", "network_efficiency"):
        value = cfg.plan[key]
        if not isinstance(value, (int, float)) or not 0.0 < value <= 1.0:
            raise UserError(f"plan.{key}={value} is a share: it must lie above 0 and not above 1")
    for key in ("gpus_per_node", "node_gbits"):
        value = cfg.plan[key]
        if not isinstance(value, (int, float)) or value <= 0:
            raise UserError(f"plan.{key}={value} must be above 0")
    if not isinstance(cfg.plan.latency_us, (int, float)) or cfg.plan.latency_us < 0:
        raise UserError(f"plan.latency_us={cfg.plan.latency_us} must not be negative")


class _Measured:
    """Steps of a model at several batch sizes, each measured once."""

    def __init__(self, planned: PlannedModel, mixed: torch.dtype | None) -> None:
        self.planned, self.mixed = planned, mixed
        self.units = units_of(planned.model)
        self._steps: dict[tuple[int, bool], StepWork] = {}

    def step(self, batch: int, *, checkpointed: bool = False) -> StepWork:
        """What a batch takes."""
        key = (batch, checkpointed)
        if key not in self._steps:
            self._steps[key] = measure_step(
                self.planned.model,
                self.planned.batch(batch),
                mixed=self.mixed,
                checkpointed=self.units if checkpointed else (),
            )
        return self._steps[key]

    def checkpointed(self, batch: int) -> StepWork | None:
        """The same, where only the inputs of units are kept."""
        return self.step(batch, checkpointed=True) if self.units else None


def _layout(cfg: DictConfig) -> Layout:
    devices, num_nodes = cfg.trainer.devices, int(cfg.trainer.num_nodes)
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if devices in ("auto", -1, "-1"):
        devices = int(cfg.plan.gpus_per_node) if _named_strategy(cfg) else 1
    elif OmegaConf.is_list(devices):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1 or num_nodes < 1:
        raise UserError(f"trainer.devices={devices}, trainer.num_nodes={num_nodes}: numbers of at least 1 are expected")
    strategy = _named_strategy(cfg)
    if devices * num_nodes == 1:
        strategy = "fsdp" if strategy == "fsdp" else "single"
    return Layout(num_nodes=num_nodes, gpus_per_node=devices, strategy=strategy or "ddp")


def _named_strategy(cfg: DictConfig) -> Strategy | None:
    """The kind of strategy that the trainer names: "ddp", "fsdp", or None for "auto"."""
    node = cfg.trainer.strategy
    name = str(node.get("_target_") if OmegaConf.is_config(node) else node)
    text = name.rpartition(".")[2].lower()
    if text in ("auto", "none", "singledevicestrategy"):
        return None
    if "fsdp" in text or "modelparallel" in text or "shard" in text:
        return "fsdp"
    if "ddp" in text:
        return "ddp"
    raise UserError(f"trainer.strategy={name}: a plan knows auto, ddp and fsdp")


def _num_averages(cfg: DictConfig) -> int:
    return len(OmegaConf.select(cfg, "callbacks.ema.decays") or ())


def _rows(cfg: DictConfig, sizes: Sizes, work: StepWork, layout: Layout) -> list[Row]:
    strategy = cfg.trainer.strategy
    view = OmegaConf.is_config(strategy) and bool(strategy.get("gradient_as_bucket_view"))
    return memory_rows(sizes, work, layout, bucket_view=view)


def _ways(cfg: DictConfig, plan: Plan, measured: _Measured) -> Sequence[str]:
    """Settings that would fit, the least change first."""

    def fits(work: StepWork, layout: Layout) -> bool:
        return replace(plan, rows=tuple(_rows(cfg, plan.sizes, work, layout))).fits

    shared = replace(plan.layout, strategy="fsdp")
    can_share = plan.layout.strategy != "fsdp" and shared.world_size > 1 and not plan.adversarial
    found = []
    if can_share and fits(plan.work, shared):
        found.append("trainer=fsdp")
    if plan.checkpointed is not None and fits(plan.checkpointed, plan.layout):
        found.append("activation checkpointing")
    if not found and can_share and plan.checkpointed is not None and fits(plan.checkpointed, shared):
        found.append("trainer=fsdp with activation checkpointing")
    parts = 2
    while plan.batch_per_gpu % parts == 0:
        if fits(measured.step(plan.batch_per_gpu // parts), plan.layout):
            size = plan.batch_per_gpu // parts * plan.layout.world_size
            found.append(f"data.batch_size={size} trainer.accumulate_grad_batches={parts * plan.num_accumulated}")
            break
        parts *= 2
    larger = [g.name for g in GPUS.values() if replace(plan, gpu=g).fits and g.memory > plan.gpu.memory]
    if larger:
        found.append(f"plan.gpu={larger[0]}")
    return found
