"""Ranges of the numbers that a command hands on to torch and Lightning, which end in a traceback at others, or train uphill.

Numbers of our own classes are checked where they are declared, by their constructors.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trilemma.errors import UserError


class Range(NamedTuple):
    """The numbers from `low` to `high`; without the ends that are named in `open`."""

    low: float
    high: float = math.inf
    open: str = ""

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            return False
        above = value > self.low if "low" in self.open else value >= self.low
        return above and (value < self.high if "high" in self.open else value <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if "low" in self.open else f"at least {self.low:g}"
        if self.high == math.inf:
            return low
        return f"{low} and {'below' if 'high' in self.open else 'at most'} {self.high:g}"


_SHARE = Range(0.0, 1.0, open="high")
RANGES: Mapping[str, Range] = {
    "seed": Range(0, 2**32 - 1),  # as numpy takes it
    "num_threads": Range(1, 4096),
    "trainer.max_steps": Range(1, 2**31 - 1),
    "trainer.num_nodes": Range(1, 2**31 - 1),
    "trainer.accumulate_grad_batches": Range(1, 2**31 - 1),
    "trainer.gradient_clip_val": Range(0.0),
    "trainer.val_check_interval": Range(1, 2**31 - 1),
    "trainer.log_every_n_steps": Range(1, 2**31 - 1),
    "trainer.num_sanity_val_steps": Range(-1, 2**31 - 1),
    "trainer.limit_val_batches": Range(0),
    "optimizer.lr": Range(0.0),
    "optimizer.weight_decay": Range(0.0),
    "optimizer.eps": Range(0.0),
    "optimizer.momentum": _SHARE,
    "optimizer.betas": _SHARE,  # each
    "scheduler.factor": Range(0.0),
    "scheduler.total_iters": Range(0, 2**31 - 1),
    "guidance.scale": Range(0.0),  # 0 unconditional, 1 conditional, above 1 guided
    "likelihood.seed": Range(0, 2**32 - 1),
    "ledger.max_seconds": Range(0.0),
    "num_png": Range(0, 2**31 - 1),
    "shard_size": Range(1, 2**31 - 1),
    "callbacks.*.every_n_batches": Range(1, 2**31 - 1),
    "callbacks.*.seed": Range(0, 2**32 - 1),
    "data.seed": Range(0, 2**32 - 1),
    "data.batch_size": Range(1, 2**31 - 1),
    "data.num_workers": Range(0, 1024),
}
"""By place in the configuration; `*` is any name. Nothing (null) is always in range: whether it may be left out, its type says."""


def check_ranges(cfg: DictConfig) -> None:
    """Check the numbers of a composed configuration.

    Raises:
        UserError: If one is no number or out of its range.
    """
    for place, allowed in RANGES.items():
        for path in _paths(cfg, place.split(".")):
            try:
                value = OmegaConf.select(cfg, path)
            except OmegaConfBaseException:  # it is missing, or what it stands for is: reported at its own key
                continue
            for one in list(value) if OmegaConf.is_list(value) else [value]:
                if one is not None and one not in allowed:
                    raise UserError(f"{path}={one}: a number {allowed} is expected")


def _paths(cfg: DictConfig, parts: list[str]) -> list[str]:
    if "*" not in parts:
        return [".".join(parts)]
    at = parts.index("*")
    node: Any = OmegaConf.select(cfg, ".".join(parts[:at]))
    names = [str(name) for name in node] if OmegaConf.is_dict(node) else []
    return [path for name in names for path in _paths(cfg, [*parts[:at], name, *parts[at + 1 :]])]
