"""Checks of a composed configuration, before anything is built.

Hydra rejects `modle.lr=1` but lets `+typo=1` and `++model.lrr=1` pass, and does not know what a class accepts. Here every key must be
known to the schema of its node, or to the signature of the class that the node names, and plain values must have the type annotated there.
What needs no class comes first, for a class takes seconds to import.
"""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from trilemma.config.build import RESERVED
from trilemma.config.options import options_of
from trilemma.config.ranges import check_ranges
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.config.trainer_options import check_trainer_options
from trilemma.errors import UserError

UNKNOWN = object()  # a value that is set elsewhere, or known only later


def reject_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise `UserError` for the first of `keys` that is not among `known`, with the nearest known name."""
    names = sorted(known)
    for key in keys:
        if key in names:
            continue
        near = get_close_matches(str(key), names, 1)
        path = f"{where}.{key}" if where else str(key)
        hint = f"did you mean {path[: -len(str(key))]}{near[0]}?" if near else f"known here: {', '.join(names)}"
        raise UserError(f"unknown override {path}: {hint}")


def check_config(cfg: DictConfig, schema: Mapping[str, Any]) -> None:
    """Check keys and types of a whole configuration.

    Args:
        cfg: As composed.
        schema: Known keys of the root and of nodes without a target: key -> nested schema, or None for "a node with a target, a plain
            value, or nothing", or "targets" for a mapping of names to such nodes.

    Raises:
        UserError: For an unknown key, a missing or mistyped value, or a target that is not allowed.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    targets = list(_check_schema(cfg, {str(k): v for k, v in raw.items() if k != "hydra"}, schema, ""))
    check_ranges(cfg)
    check_trainer_options(cfg)
    # The model first: that its process is of another kind says more than that the process's schedule is.
    for node, path in sorted(targets, key=lambda target: target[1] != "model"):
        _check_target(cfg, node, path)


def check_node(node: Mapping[str, Any], where: str) -> None:
    """Check keys and types of one resolved node against the class that it names.

    Raises:
        UserError: As in `check_config`.
    """
    _check_target(OmegaConf.create(), dict(node), where)


def _check_schema(
    cfg: DictConfig, node: dict[str, Any], schema: Mapping[str, Any], where: str
) -> Iterator[tuple[dict[str, Any], str]]:
    """Check what the schema knows; yields the nodes that name a class, with their paths."""
    reject_unknown(node, schema, where)
    for key, value in node.items():
        path = f"{where}.{key}" if where else key
        expected = schema[key]
        if value == "???":
            raise UserError(f"{path} is missing: give {path}=...")
        if isinstance(value, dict) and "_target_" in value:
            yield value, path
        elif isinstance(expected, Mapping):
            if isinstance(value, dict):
                yield from _check_schema(cfg, value, expected, path)
            elif value is not None and not _is_interpolation(value):
                raise UserError(f"{path}={value}: a group or a mapping belongs here, with {', '.join(expected)}")
        elif expected == "targets" and isinstance(value, dict):
            for name, entry in value.items():
                if isinstance(entry, dict) and "_target_" in entry:
                    yield entry, f"{path}.{name}"
                elif entry is not None and not _is_interpolation(entry):
                    raise UserError(f"unknown override {path}.{name}: an entry of {path} needs a _target_")
        elif isinstance(expected, (type, types.UnionType)) or get_origin(expected) is Literal:
            _check_value(_resolve(cfg, value, path), expected, path)


def _check_target(cfg: DictConfig, node: dict[str, Any], where: str) -> None:
    target = locate(node["_target_"], COMMAND_LINE, where)
    signature = inspect.signature(target)
    parameters = {
        name: p for name, p in signature.parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }
    given = {str(k): v for k, v in node.items() if k not in RESERVED}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if not takes_any:
        reject_unknown(given, parameters, where)
    if not node.get("_partial_", False):
        missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
        if missing:
            raise UserError(f"{where}.{missing[0]} is missing: {node['_target_']} needs it")
    hints = _hints(target)
    for key, value in given.items():
        path = f"{where}.{key}"
        if value == "???":
            raise UserError(f"{path} is missing: give {path}=...")
        if isinstance(value, dict) and "_target_" in value:
            _check_target(cfg, value, path)
            if key in hints and not value.get("_partial_", False):
                _check_kind(value["_target_"], hints[key], path)
        elif key in hints:
            if key == "process" and (chosen := OmegaConf.select(cfg, f"{path}._target_", throw_on_missing=False)):
                _check_kind(chosen, hints[key], key)
            _check_value(_resolve(cfg, value, path), hints[key], path)


def _check_kind(target: str, hint: Any, path: str) -> None:
    """See that an object of ours is of the class that stands in the annotation; protocols and other annotations take anything."""
    found = locate(target, COMMAND_LINE, path)
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    wanted = tuple(h for h in hints if inspect.isclass(h) and h is not type(None))
    ours = all(w.__module__.startswith("trilemma") and not getattr(w, "_is_protocol", False) for w in wanted)
    if not (inspect.isclass(found) and wanted and ours) or issubclass(found, wanted):
        return
    group = path.replace(".", "/")
    fitting = options_of(group, lambda kind: issubclass(kind, wanted))
    choice = f": choose {group}=" + f" or {group}=".join(fitting) if fitting else ""
    raise UserError(f"{path}: a {_name(hint)} is expected here, and {found.__name__} is none{choice}")


def _hints(target: Any) -> dict[str, Any]:
    function = target.__init__ if inspect.isclass(target) else target
    try:
        return typing.get_type_hints(function)
    except Exception:  # a third-party annotation that cannot be evaluated at run time
        return {}


def _is_interpolation(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def _resolve(cfg: DictConfig, value: Any, path: str) -> Any:
    if not _is_interpolation(value):
        return value
    try:
        OmegaConf.select(cfg, path)
    except InterpolationToMissingValueError:
        pass  # a missing value is reported at its own key
    except OmegaConfBaseException as error:
        raise UserError(f"{path}={value} cannot be resolved: {str(error).splitlines()[0]}") from None
    return UNKNOWN  # an interpolated value is checked at its own key


def _check_value(value: Any, hint: Any, path: str) -> None:
    if value is UNKNOWN or hint is Any or _fits(value, hint):
        return
    if get_origin(hint) is Literal:
        choices = [str(c) for c in get_args(hint)]
        near = get_close_matches(str(value), choices, 1)
        raise UserError(
            f"{path}={value}: choose one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
        )
    raise UserError(f"{path}={value}: {_name(hint)} is expected, not {type(value).__name__}")


def _name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_name(h) for h in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(str(choice) for choice in get_args(hint))
    return "nothing (null)" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _fits(value: Any, hint: Any) -> bool:
    """Check whether a plain value fits an annotation; annotations that are not about plain values accept anything."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, h) for h in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin in (list, tuple, collections.abc.Sequence):
        return isinstance(value, (list, tuple))
    if origin is dict or hint is dict:
        return isinstance(value, dict)
    # A built object is expected: a plain scalar in its place is a mistake, None only where the annotation says so.
    if inspect.isclass(hint) and hint.__module__.startswith("trilemma"):
        return isinstance(value, dict)
    return True
