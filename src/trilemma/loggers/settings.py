"""What of a configuration is shown to others: the settings that say what a run is, and nothing of where or by whom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from trilemma.config.nodes import plain

# The groups first, so that the model's node need not repeat them.
_GROUPS = (
    "data",
    "codec",
    "process",
    "network",
    "condition",
    "sampler",
    "guidance",
    "optimizer",
    "scheduler",
    "trainer",
)
_SCALARS = ("seed", "deterministic", "compile", "activation_checkpointing")
_SECRET = re.compile(r"key|token|secret|password|passwd|credential|^hydra$|^paths$|^overrides$", re.IGNORECASE)
_PLACE = re.compile(
    r"path|root|dir|checkpoint|ckpt|file|host|user|address|url", re.IGNORECASE
)  # where its value is text
# Class paths, names like mnist/vqvae, words and numbers; no absolute path, home, address or environment.
_PLAIN_TEXT = re.compile(r"(?!.*\.\.)[\w][\w.+\-]*(/[\w.+\-]+){0,2}", re.ASCII)
_DROPPED = object()


def run_settings(cfg: DictConfig) -> dict[str, Any]:
    """Settings of a training run by group, for loggers: an allow-list.

    A class is named by the last part of its path, under `class`.

    Args:
        cfg: The configuration, facts filled in.
    """
    groups = {name: plain(cfg, name) for name in _GROUPS if name in cfg}
    model = plain(cfg, "model") or {}
    groups["model"] = {key: value for key, value in model.items() if value is None or groups.get(key) != value}
    scalars = {name: cfg[name] for name in _SCALARS if name in cfg}
    facts = {key: value for key, value in (plain(cfg, "facts") or {}).items() if key != "codec"}
    return shown({"experiment": cfg.experiment_name, **scalars, **groups, "facts": facts})


def shown(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Leave out what is nobody's business: keys that sound secret or name a place, text that is no plain name.

    Args:
        settings: Nested containers and plain values; anything else is left out.
    """
    result = _shown(settings)
    assert isinstance(result, dict)
    return result


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        parts = {str(key): _shown(part) for key, part in value.items() if not _is_private(str(key), part)}
        kept = {key: part for key, part in parts.items() if part is not _DROPPED and part != {}}
        if "_target_" in kept:
            kept = {"class": str(kept.pop("_target_")).rsplit(".", 1)[-1], **kept}
        kept.pop("_partial_", None)
        return kept
    if isinstance(value, (list, tuple)):
        return [part for part in (_shown(part) for part in value) if part is not _DROPPED]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str) and _PLAIN_TEXT.fullmatch(value) and len(value) <= 100:
        return value
    return _DROPPED


def _is_private(key: str, value: Any) -> bool:
    return bool(_SECRET.search(key)) or (isinstance(value, str) and bool(_PLACE.search(key)))
