"""Number of processes and nodes of a run: from the command line, or from SLURM or torchrun."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import DictConfig

from trilemma.config.nodes import plain
from trilemma.errors import UserError


@dataclass(frozen=True)
class ProcessCount:
    """The number of processes of a run, by node.

    Attributes:
        devices: Processes a node, one a device, or the devices of the one node by number.
        num_nodes: Nodes.
        started_by: "SLURM" or "torchrun" where the processes are there already; None where Lightning starts them.
    """

    devices: int | list[int]
    num_nodes: int
    started_by: str | None = None

    @property
    def num_processes(self) -> int:
        """All of them."""
        return self.num_nodes * (self.devices if isinstance(self.devices, int) else len(self.devices))


def process_count(node: Mapping[str, Any]) -> ProcessCount:
    """Determine the number of processes of a trainer.

    `devices: auto` means what started the processes has given: SLURM's tasks a node, torchrun's processes a node. Where nothing
    has, it is one device, or with a strategy for several (`trainer=ddp`) every GPU of this machine.

    Args:
        node: The trainer's configuration: devices, num_nodes, accelerator and strategy.

    Raises:
        UserError: If the numbers contradict those of SLURM or torchrun, or are none.
    """
    devices, num_nodes = _devices(node["devices"]), int(node.get("num_nodes", 1))
    if num_nodes < 1:
        raise UserError(f"trainer.num_nodes={num_nodes} must be at least 1")
    given = _given()
    if given is None:
        if devices is None:
            devices = _visible_gpus(node["accelerator"]) if has_strategy(node) else 1
        if num_nodes > 1:
            raise UserError(
                f"trainer.num_nodes={num_nodes}: nothing has started processes on other nodes; submit slurm/train.sbatch, or "
                "start torchrun on each node"
            )
        return ProcessCount(devices, num_nodes)
    num_given = devices if isinstance(devices, int) or devices is None else len(devices)
    if num_given not in (None, given.devices):
        how = f"--ntasks-per-node={num_given}" if given.started_by == "SLURM" else f"--nproc-per-node={num_given}"
        raise UserError(
            f"trainer.devices={node['devices']}, but {given.started_by} has started {given.devices} processes a node: "
            f"leave out trainer.devices, or give {given.started_by} {how}"
        )
    if num_nodes not in (1, given.num_nodes):
        raise UserError(
            f"trainer.num_nodes={num_nodes}, but {given.started_by} has given {given.num_nodes}: leave out trainer.num_nodes, "
            f"or give {given.started_by} {'--nodes' if given.started_by == 'SLURM' else '--nnodes'}={num_nodes}"
        )
    return ProcessCount(given.devices if devices is None else devices, given.num_nodes, given.started_by)


def is_multi_process(cfg: DictConfig) -> bool:
    """Check whether the trainer will run, or runs already, in several processes."""
    return process_count(plain(cfg, "trainer")).num_processes > 1


def has_strategy(node: Mapping[str, Any]) -> bool:
    """Check whether the trainer's node names a strategy, rather than leaving it to the number of processes."""
    return bool(node.get("strategy", "auto") != "auto")


def _devices(value: Any) -> int | list[int] | None:
    if value in ("auto", -1, "-1"):
        return None
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, list)) or value in (0, []) or (value == -1):
        raise UserError(f"trainer.devices={value}: a number of devices, a list of their numbers or auto is expected")
    return value


def _given() -> ProcessCount | None:
    """Read what SLURM or torchrun has started."""
    if TorchElasticEnvironment.detect():
        devices, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        return ProcessCount(devices, max(1, world // devices), "torchrun")
    if not SLURMEnvironment.detect():
        return None
    tasks, nodes = (int(os.environ.get(name, "1")) for name in ("SLURM_NTASKS", "SLURM_NNODES"))
    per_node = os.environ.get("SLURM_NTASKS_PER_NODE")
    if per_node is None:
        if tasks > 1:  # SLURM may then distribute tasks unequally over nodes
            raise UserError(
                f"SLURM was given --ntasks={tasks} without --ntasks-per-node: give --nodes={nodes} and "
                f"--ntasks-per-node={max(1, tasks // nodes)}"
            )
        return ProcessCount(1, 1, "SLURM")
    if int(per_node) * nodes != tasks:
        raise UserError(
            f"SLURM has started {tasks} tasks on {nodes} nodes with --ntasks-per-node={per_node}: start all of them in one srun"
        )
    return ProcessCount(int(per_node), nodes, "SLURM")


def _visible_gpus(accelerator: Any) -> int:
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1
