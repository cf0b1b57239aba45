"""The only place that turns configuration into objects."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.errors import UserError

RESERVED = ("_target_", "_partial_")


def build(
    node: Any,
    *,
    allowed: tuple[str, ...] = COMMAND_LINE,
    where: str = "config",
    shared: Sequence[tuple[Any, Any]] = (),
) -> Any:
    """Build the object a plain config node describes.

    A mapping with `_target_` becomes an instance of that class, its other entries the keyword arguments, built first; with
    `_partial_: true` it becomes the class with those arguments bound. Other mappings and lists are built element by element; what
    is built already stays as it is.

    A codec is one object wherever a configuration names it: a part of a model whose own node names the same codec as the model
    (a process that reads its codebook) is given the model's.

    Args:
        node: Plain containers (resolved; no OmegaConf).
        allowed: Module prefixes whose classes may be named.
        where: Path of the node, for error messages.
        shared: Pairs of a node and the object that stands wherever a node equals it.

    Raises:
        UserError: If a target is not allowed or its arguments do not fit.
    """
    for known, built in shared:
        if node == known:
            return built
    if isinstance(node, Mapping):
        if isinstance(codec := node.get("codec"), Mapping) and "_target_" in codec:
            shared = [*shared, (codec, build(codec, allowed=allowed, where=f"{where}.codec", shared=shared))]
        parts = {
            key: build(value, allowed=allowed, where=f"{where}.{key}", shared=shared)
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
        return [build(value, allowed=allowed, where=f"{where}[{i}]", shared=shared) for i, value in enumerate(node)]
    return node
