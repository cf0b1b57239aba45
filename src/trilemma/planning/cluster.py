"""On what a run is computed and how it is laid out, as the trainer's settings and those of `plan` say."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError

Strategy = Literal["single", "ddp", "fsdp"]
"""One device; all hold everything; all share weights, gradients and states."""

_STRATEGIES: dict[str, Strategy | None] = {  # by a part of the class's name; None is "auto"
    "auto": None,
    "none": None,
    "singledevice": None,
    "shard": "fsdp",
    "fsdp": "fsdp",
    "modelparallel": "fsdp",
    "ddp": "ddp",
}

_PRECISIONS = {
    "32-true": torch.float32,
    "32": torch.float32,
    "bf16-mixed": torch.bfloat16,
    "16-mixed": torch.float16,
}


@dataclass(frozen=True)
class GPU:
    """A GPU by its maker's data sheet, without sparsity."""

    name: str  # as on the command line
    memory: float  # GiB
    half: float  # 10^12 operations a second on matrices of 16-bit numbers
    single: float  # the same in single precision, off the units for matrices
    bandwidth: float  # 10^9 bytes a second to its memory
    link: float  # 10^9 bytes a second to the other GPUs of its node, each way
    bfloat16: bool = True  # whether it has units for bfloat16


GPUS = {
    gpu.name: gpu
    for gpu in (  # NVIDIA's data sheets of the V100 (SXM2), A100 (SXM4), H100 (SXM5) and H200 (SXM) Tensor Core GPUs
        GPU("v100-16gb", memory=16, half=125, single=15.7, bandwidth=900, link=150, bfloat16=False),
        GPU("v100-32gb", memory=32, half=125, single=15.7, bandwidth=900, link=150, bfloat16=False),
        GPU("a100-40gb", memory=40, half=312, single=19.5, bandwidth=1555, link=300),
        GPU("a100-80gb", memory=80, half=312, single=19.5, bandwidth=2039, link=300),
        GPU("h100-80gb", memory=80, half=989, single=67, bandwidth=3350, link=450),
        GPU("h200-141gb", memory=141, half=989, single=67, bandwidth=4800, link=450),
    )
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a run is laid out and computed."""

    gpu: GPU
    assumed: DictConfig  # the node `plan`: see conf/debug/plan.yaml
    precision: str = "32-true"  # the trainer's
    num_nodes: int = 1  # n
    gpus_per_node: int = 1  # those that are used
    strategy: Strategy = "single"
    batch_per_gpu: int = 1  # images that one GPU gets at once
    num_accumulated: int = 1  # batches an update
    recomputes: bool = False  # activations are computed twice instead of kept
    bucket_view: bool = False  # DDP's gradients lie in its buckets (`gradient_as_bucket_view`), not beside them

    @property
    def world_size(self) -> int:
        """Number of GPUs N = n g."""
        return self.num_nodes * self.gpus_per_node

    @property
    def batch(self) -> int:
        """Images an update."""
        return self.batch_per_gpu * self.num_accumulated * self.world_size

    @property
    def dtype(self) -> torch.dtype:
        """In which matrices are multiplied."""
        return _PRECISIONS[self.precision]

    @property
    def rate(self) -> float:
        """Operations a second at best."""
        return (self.gpu.single if self.dtype == torch.float32 else self.gpu.half) * 1e12

    @property
    def gathered_share(self) -> float:
        """Size in which FSDP gathers the weights of a block over their own."""
        return 0.5 if self.precision == "bf16-mixed" else 1.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second past the narrowest place of a ring over all GPUs."""
        between = self.assumed.node_gbits / 8 if self.num_nodes > 1 else self.gpu.link
        return float(self.assumed.network_efficiency * min(self.gpu.link, between) * 1e9)


def setup_of(cfg: DictConfig) -> Setup:
    """Read a setup; `devices: auto` is `plan.gpus_per_node` with a strategy, else one.

    Raises:
        UserError: If a number is out of range, a batch does not divide, or a plan does not know the GPU, the strategy or the precision.
    """
    trainer, assumed = cfg.trainer, cfg.plan
    for key in ("utilisation", "memory_share", "network_efficiency"):
        if not 0.0 < assumed[key] <= 1.0:
            raise UserError(f"plan.{key}={assumed[key]} is a share: it must lie above 0 and not above 1")
    for key in ("gpus_per_node", "node_gbits"):
        if assumed[key] <= 0:
            raise UserError(f"plan.{key}={assumed[key]} must be above 0")
    if assumed.latency_us < 0:
        raise UserError(f"plan.latency_us={assumed.latency_us} must not be negative")
    gpu, precision, strategy = find_gpu(assumed.gpu), str(trainer.precision), _strategy(trainer.strategy)
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision={precision}: a plan knows {', '.join(_PRECISIONS)}")
    if _PRECISIONS[precision] == torch.bfloat16 and not gpu.bfloat16:
        raise UserError(
            f"plan.gpu={gpu.name} has no blocks for bfloat16: take trainer.precision=16-mixed, or a later GPU"
        )
    devices, num_nodes = trainer.devices, int(trainer.num_nodes)
    if devices in ("auto", -1, "-1"):
        devices = assumed.gpus_per_node if strategy else 1
    elif OmegaConf.is_list(devices):
        devices = len(devices)
    elif str(devices).isdigit():
        devices = int(devices)
    if not isinstance(devices, int) or devices < 1 or num_nodes < 1:
        raise UserError(f"trainer.devices={devices}, trainer.num_nodes={num_nodes}: numbers of at least 1 are expected")
    size, world_size = cfg.data.batch_size, devices * num_nodes
    if size % world_size:
        raise UserError(f"data.batch_size={size} is the batch of all devices: make it a multiple of {world_size}")
    return Setup(
        gpu=gpu,
        assumed=assumed,
        precision=precision,
        num_nodes=num_nodes,
        gpus_per_node=devices,
        strategy="single" if world_size == 1 and strategy != "fsdp" else strategy or "ddp",
        batch_per_gpu=size // world_size,
        num_accumulated=int(trainer.accumulate_grad_batches),
        recomputes=bool(cfg.get("activation_checkpointing", False)),
        bucket_view=bool(OmegaConf.select(trainer, "strategy.gradient_as_bucket_view")),
    )


def find_gpu(name: str) -> GPU:
    """Find a GPU by its name.

    Raises:
        UserError: If it is not in the table.
    """
    if name in GPUS:
        return GPUS[name]
    text = name.lower()
    near = [known for known in GPUS if text and known.startswith(text)] or get_close_matches(text, GPUS, 1, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f"plan.gpu={name} is not known: {hint}there are {', '.join(GPUS)}")


def _strategy(node: Any) -> Strategy | None:
    name = str(node.get("_target_") if OmegaConf.is_config(node) else node)
    for part, strategy in _STRATEGIES.items():
        if part in name.rpartition(".")[2].lower():
            return strategy
    raise UserError(f"trainer.strategy={name}: a plan knows auto, ddp and fsdp")
