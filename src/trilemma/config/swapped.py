"""Parts of an experiment that the command line swaps for others, and overrides written as Hydra reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from trilemma.config.build import RESERVED
from trilemma.config.small_options import group_nodes
from trilemma.config.targets import COMMAND_LINE, locate

_GROUPS = ("data", "codec", "process", "network", "sampler", "guidance", "condition", "optimizer", "scheduler")


def drop_foreign(cfg: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Let an experiment's settings of a part fall away where the command line chose another option for that part.

    The part has the option's own settings then. Of data, those stay that the new data set has too: batch size and the like are of the
    training. What the command line sets stays, to be checked.

    Args:
        cfg: As composed; changed.
        overrides: Of the command line.

    Returns:
        What fell away, as `network.channels=48`.
    """
    words = [word.lstrip("+~").partition("=")[0] for word in overrides]
    chosen = dict(word.partition("=")[::2] for word in overrides)
    dropped: list[str] = []
    for group in _GROUPS:
        if chosen.get("experiment") and group in words and OmegaConf.select(cfg, f"{group}._target_") is not None:
            others = [
                word for word in overrides if word.partition("=")[0] in ("experiment", "model", "hydra.searchpath")
            ]
            usual = compose("train", others, return_hydra_config=True).hydra.runtime.choices.get(group)
            if usual != chosen[group]:
                dropped += _reset(cfg, group, chosen[group], words)
    return dropped


def _reset(cfg: DictConfig, group: str, option: str, words: Sequence[str]) -> Iterator[str]:
    """Reset the settings of a group to those of an option; yields what was set otherwise."""
    known = inspect.signature(locate(cfg[group]["_target_"], COMMAND_LINE, group)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
    raw: Any = OmegaConf.to_container(cfg[group], resolve=False)
    own = group_nodes(group).get(option, {})
    with open_dict(cfg):
        for key, value in raw.items():
            if key in RESERVED or any(word == f"{group}.{key}" or word.startswith(f"{group}.{key}.") for word in words):
                continue
            if key not in known and not takes_any:
                del cfg[group][key]
            elif group != "data" and key in own and own[key] != value:
                cfg[group][key] = own[key]
            else:
                continue
            yield f"{group}.{key}={value}"


def literal(value: Any) -> str:
    """Write a plain value as Hydra's command line reads it, whatever is in it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(literal, value)) + "]"
    # Within quotes only the quote is escaped, and backslashes before one; an interpolation would be taken for one.
    text = re.sub(r"\$\{(?=.*\})", r"\\${", str(value))
    parts = [part + "\\" * (len(part) - len(part.rstrip("\\"))) for part in text.split("'")]
    return "'" + "\\'".join(parts) + "'"
