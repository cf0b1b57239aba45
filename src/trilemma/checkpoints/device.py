"""The device that a command works on."""

from __future__ import annotations

import torch
from omegaconf import DictConfig

_CPU_BATCH, _ACCELERATOR_BATCH = 32, 256  # images at a time: what fits a CPU's caches, and what fills a GPU


def pick_device(name: str) -> str:
    """Name the device that `auto` stands for: a CUDA or ROCm GPU where there is one, else the CPU.

    Apple's GPUs have no float64, which schedules and counts need: they are taken where they are named.
    """
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def settle_device(cfg: DictConfig) -> None:
    """Replace `device: auto` by what it stands for, and `batch_size: null` by what suits it; images depend on neither."""
    cfg.device = pick_device(cfg.device)
    if cfg.batch_size is None:
        cfg.batch_size = _CPU_BATCH if cfg.device == "cpu" else _ACCELERATOR_BATCH
