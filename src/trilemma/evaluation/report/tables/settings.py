"""The settings of a row in a few words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trilemma.evaluation.report.row import Row, number

_UNGUIDED = "trilemma.samplers.guidance.Guidance"
# Values at which a setting does nothing, or what everybody takes.
_PLAIN = {
    "truncation": 1.0,
    "temperature": 1.0,
    "eta": 0.0,
    "order": 2,
    "variance": "small",
    "grid": "trailing",
    "clip": True,
}


def num_steps(row: Row) -> int | None:
    """Steps of its sampler; None where it takes none."""
    steps = number(row.protocol, "sampler", "num_steps")
    return None if steps is None else int(steps)


def settings_key(row: Row, *, with_steps: bool = True) -> str:
    """Equal for rows that differ in seeds and checkpoints alone (and in steps, where asked)."""
    sampler = dict(_mapping(row, "sampler"))
    if not with_steps:
        sampler.pop("num_steps", None)
    keys = ("model", "weights", "condition", "preprocessing", "budget")
    parts = [row.protocol.get(key) for key in keys]
    content = [_as_floats(sampler), _as_floats(_mapping(row, "guidance")), parts]
    return json.dumps(content, sort_keys=True, default=str)


def describe(row: Row) -> str:
    """Sampler and guidance without the steps, for instance "Ancestral, truncation 0.86, guidance 2"."""
    sampler, guidance = _mapping(row, "sampler"), _mapping(row, "guidance")
    words = []
    if "_target_" in sampler:
        words.append(_class_name(sampler))
    for name, value in sampler.items():
        if name not in ("_target_", "num_steps") and value is not None and value != _PLAIN.get(name):
            words.append(f"{name.replace('_', ' ')} {_show(value)}")
    words.append(_describe_guidance(guidance))
    condition = row.protocol.get("condition")
    if condition in (None, "none"):
        words.append("unconditional")
    elif not str(condition).endswith("all in turn"):
        words.append(str(condition).replace(": ", " "))
    if row.protocol.get("weights") == "raw":
        words.append("raw weights")
    return ", ".join(word for word in words if word)


def _describe_guidance(guidance: Mapping[str, Any]) -> str:
    if "scale" not in guidance:
        return _class_name(guidance) if guidance.get("_target_", _UNGUIDED) != _UNGUIDED else ""
    words = f"{'classifier ' if 'classifier' in guidance else ''}guidance {_show(guidance['scale'])}"
    start, stop = guidance.get("start", 1.0), guidance.get("stop", 0.0)
    return words if (start, stop) == (1.0, 0.0) else f"{words} for t in [{_show(stop)}, {_show(start)}]"


def _as_floats(node: Mapping[str, Any]) -> dict[str, Any]:
    """2 and 2.0 are one setting."""
    return {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in node.items()}


def _mapping(row: Row, key: str) -> Mapping[str, Any]:
    found = row.protocol.get(key)
    return found if isinstance(found, Mapping) else {}


def _class_name(node: Mapping[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _show(value: object) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
