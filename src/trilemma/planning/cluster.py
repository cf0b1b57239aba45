"""How a command lays a run out on a cluster, and what a plan assumes of that cluster."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError
from trilemma.planning.estimates.communication import Fabric
from trilemma.planning.estimates.layout import Layout, Strategy


def layout_of(cfg: DictConfig) -> Layout:
    """Nodes, GPUs and strategy, as the trainer's settings name them; `devices: auto` is `plan.gpus_per_node` with a strategy, else one.

    Raises:
        UserError: If a number is none, or a plan does not know the strategy.
    """
    devices, num_nodes = cfg.trainer.devices, int(cfg.trainer.num_nodes)
    strategy = _strategy(cfg)
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if devices in ("auto", -1, "-1"):
        devices = int(cfg.plan.gpus_per_node) if strategy else 1
    elif OmegaConf.is_list(devices):
        devices = len(devices)
    if not isinstance(devices, int) or devices < 1 or num_nodes < 1:
        raise UserError(f"trainer.devices={devices}, trainer.num_nodes={num_nodes}: numbers of at least 1 are expected")
    if devices * num_nodes == 1 and strategy != "fsdp":
        strategy = "single"
    return Layout(
        num_nodes=num_nodes,
        gpus_per_node=devices,
        strategy=strategy or "ddp",
        gathered_share=0.5 if str(cfg.trainer.precision) == "bf16-mixed" else 1.0,
    )


def _strategy(cfg: DictConfig) -> Strategy | None:
    """The kind of strategy that the trainer names; None for "auto"."""
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


def has_bucket_view(cfg: DictConfig) -> bool:
    """Whether DDP's gradients lie in its buckets."""
    strategy = cfg.trainer.strategy
    return OmegaConf.is_config(strategy) and bool(strategy.get("gradient_as_bucket_view"))


def fabric_of(cfg: DictConfig) -> Fabric:
    """The network that a plan assumes."""
    return Fabric(
        node_gbits=cfg.plan.node_gbits,
        efficiency=cfg.plan.network_efficiency,
        latency=1e-6 * cfg.plan.latency_us,
    )


def check_assumptions(cfg: DictConfig) -> None:
    """See that what a plan assumes is possible.

    Raises:
        UserError: If a share is none, or a rate not above 0.
    """
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
