"""Build the trainer of a run from the configuration and the family's needs."""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf

from trilemma.callbacks.objective import ChecksObjective
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.distributed.devices import ProcessCount, has_strategy, process_count
from trilemma.distributed.strategies import DDP, FullyShard, HandAveragedDDP
from trilemma.errors import UserError
from trilemma.models.base import Family


def build_trainer(cfg: DictConfig) -> Trainer:
    """Build callbacks, loggers and the trainer.

    Raises:
        UserError: If the parts do not fit each other, this machine or what SLURM has given.
    """
    node = plain(cfg, "trainer") | {"_partial_": True}
    processes = process_count(node)
    _check_batch(cfg, processes)
    node |= {"devices": processes.devices, "num_nodes": processes.num_nodes}
    node["accelerator"] = _accelerator(cfg, node["accelerator"])
    if _family_of(cfg).optimises_by_hand:  # Lightning refuses to clip and accumulate for such a family
        node |= {"accumulate_grad_batches": 1, "gradient_clip_val": None}
    elif node["precision"] in ("16-mixed", 16, "16") and OmegaConf.select(cfg, "optimizer.fused"):
        raise UserError(
            f"trainer.precision={node['precision']}: a fused optimiser undoes the scaling of gradients too late to clip them; "
            "take bf16-mixed, or optimizer.fused=false"
        )
    callbacks = [c for c in build(plain(cfg, "callbacks") or {}, where="callbacks").values() if c is not None]
    if (metric := cfg.get("optimized_metric")) is not None:
        callbacks.append(ChecksObjective(metric))
        node["num_sanity_val_steps"] = node.get("num_sanity_val_steps") or 1
    loggers = [x for x in build(plain(cfg, "logger") or {}, where="logger").values() if x is not None]
    try:
        partial = build(node, where="trainer")
        options = partial.keywords
        if options.get("strategy") == "ddp" or (not has_strategy(node) and processes.num_processes > 1):
            options["strategy"] = DDP()
        _check_strategy(cfg, options["strategy"])
        plugins = [*(options.get("plugins") or [])]
        if processes.started_by == "SLURM":  # we requeue ourselves: Lightning's requeueing loses work
            plugins.append(SLURMEnvironment(auto_requeue=False))
        # Lightning's own bar counts epochs, of which a run has one without end.
        options["enable_progress_bar"] &= any(isinstance(callback, ProgressBar) for callback in callbacks)
        trainer: Trainer = partial(**{"callbacks": callbacks, "logger": loggers or False, "plugins": plugins})
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error
    return trainer


def _check_batch(cfg: DictConfig, processes: ProcessCount) -> None:
    size, num = OmegaConf.select(cfg, "data.batch_size"), processes.num_processes
    if isinstance(size, int) and size % num:
        raise UserError(
            f"data.batch_size={size} is the batch of all {num} processes: make it a multiple of {num}, "
            f"{max(1, size // num) * num} for one"
        )


def _accelerator(cfg: DictConfig, wanted: Any) -> Any:
    has_cuda = torch.cuda.is_available()
    if wanted == "auto":  # Apple's MPS is used only if named
        return "cuda" if has_cuda else "cpu"
    if wanted in ("gpu", "cuda"):
        if not has_cuda:
            raise UserError(
                f"trainer.accelerator={wanted}: torch sees no CUDA GPU here; take trainer=cpu, or fix the driver"
            )
        return "cuda"
    if wanted == "mps":
        if OmegaConf.select(cfg, "process") is not None:
            raise UserError(
                "trainer.accelerator=mps: Apple's MPS has no float64, in which a diffusion process computes its schedule; "
                "take trainer=cpu (first stages and classifiers do train on MPS)"
            )
        if not torch.backends.mps.is_available():
            raise UserError(
                "trainer.accelerator=mps: this machine has no Apple GPU that torch can use; take trainer=cpu"
            )
    return wanted


def _check_strategy(cfg: DictConfig, strategy: Any) -> None:
    if isinstance(strategy, HandAveragedDDP) and not _family_of(cfg).optimises_by_hand:
        raise UserError(
            "trainer=ddp_adversarial is for families that average gradients by themselves: take trainer=ddp"
        )
    if isinstance(strategy, FullyShard) and not _family_of(cfg).shardable:
        raise UserError(
            "trainer=fsdp: a family with a discriminator trains with trainer=ddp_adversarial, or in one process"
        )


def strategy_of(cfg: DictConfig) -> type | None:
    """Find the class of strategy that the configuration names; None where it leaves that to the number of processes."""
    target = OmegaConf.select(cfg, "trainer.strategy._target_") if has_strategy(plain(cfg, "trainer")) else None
    found = None if target is None else locate(target, COMMAND_LINE, "trainer.strategy")
    return found if isinstance(found, type) else None


def check_compiler(cfg: DictConfig) -> None:
    """Refuse `compile=true` where torch has no compiler to use.

    Raises:
        UserError: If the run is on the CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if _accelerator(cfg, cfg.trainer.accelerator) == "cpu" and not any(map(shutil.which, (compiler, "clang++"))):
        raise UserError(
            f"compile=true needs a C++ compiler, and there is no {compiler}: install one, or leave out compile"
        )


def _family_of(cfg: DictConfig) -> type[Family]:
    """Find the model's class; an ordinary family where it is none, which the build reports later."""
    family = locate(cfg.model._target_, COMMAND_LINE, "model")
    return family if isinstance(family, type) and issubclass(family, Family) else Family
