"""The only place that turns configuration into objects."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.errors import UserError

RESERVED = ("_target_", "_partial_")


def build(node: Any, *, allowed: tuple[str, ...] = COMMAND_LINE, where: str = "config") -> Any:
    """Build the object a plain config node describes.

    A mapping with `_target_` becomes an instance of that class, its other entries the keyword arguments, built first; with
    `_partial_: true` it becomes the class with those arguments bound. Other mappings and lists are built element by element.

    Args:
        node: Plain containers (resolved; no OmegaConf).
        allowed: Module prefixes whose classes may be named.
        where: Path of the node, for error messages.

    Raises:
        UserError: If a target is not allowed or its arguments do not fit.
    """
    if isinstance(node, Mapping):
        parts = {
            key: build(value, allowed=allowed, where=f"{where}.{key}")
            for key, value in node.items()
            if key not in RESERVED
        }
        if "_target_" not in node:
            return parts
        target = locate(node["_target_"], allowed, where)
        if node.get("_partial_", False):
            return functools.partial(target, **parts)
        try:
            return target(**parts)
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}: {node['_target_']} cannot be built: {error}") from error
    if isinstance(node, (list, tuple)):
        return [build(value, allowed=allowed, where=f"{where}[{i}]") for i, value in enumerate(node)]
    return node
