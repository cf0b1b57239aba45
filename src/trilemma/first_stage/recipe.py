"""The recipe of a run: all settings that decide its weights, but for the content of the data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

# The nodes that decide the weights. Paths, loggers and callbacks do not.
_KEYS = (
    "model",
    "optimizer",
    "scheduler",
    "seed",
    "deterministic",
    "init_from",
    "codec",
    "process",
    "network",
    "condition",
)
_TRAINER_KEYS = ("max_steps", "precision", "gradient_clip_val", "accumulate_grad_batches")
# How the data are read and where they lie; the fingerprint identifies their content.
_NOT_OF_THE_DATA = ("root", "cache_dir", "download", "verify", "num_workers", "shards", "val_shards", "test_shards")
_NOTHING = object()


def recipe_of(cfg: DictConfig) -> dict[str, Any]:
    """Take the recipe out of a training configuration, before facts are known; interpolations stay as they are."""
    averages = OmegaConf.select(cfg, "callbacks.ema")  # averages decide which weights are loaded
    raw = OmegaConf.masked_copy(
        cfg, [str(k) for k in cfg if k not in ("paths", "run", "logger", "callbacks", "experiment_name")]
    )
    node: Any = OmegaConf.to_container(raw, resolve=False)
    parts = {key: node.get(key) for key in _KEYS}
    parts["trainer"] = {key: (node.get("trainer") or {}).get(key) for key in _TRAINER_KEYS}
    parts["averages"] = OmegaConf.to_container(averages, resolve=False) if OmegaConf.is_config(averages) else None
    parts["data"] = {k: v for k, v in (node.get("data") or {}).items() if k not in _NOT_OF_THE_DATA}
    return parts


def recipe_hash(recipe: Mapping[str, Any], *, with_length: bool = True) -> str:
    """Hash a recipe, sixteen hexadecimal digits; without its length, a run and its continuation agree."""
    parts = dict(recipe)
    if not with_length:
        parts["trainer"] = {key: value for key, value in recipe["trainer"].items() if key != "max_steps"}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Yield what differs, as `optimizer.lr (0.1 -> 0.2)`."""
    for key in dict.fromkeys([*old, *new]):
        path = f"{where}.{key}" if where else key
        before, after = old.get(key, _NOTHING), new.get(key, _NOTHING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, path)
        elif before != after:
            words = ("none" if value is _NOTHING or value is None else str(value)[:40] for value in (before, after))
            yield f"{path} ({' -> '.join(words)})"
