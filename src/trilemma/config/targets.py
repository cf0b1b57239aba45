"""The classes that a configuration may name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from trilemma.errors import UserError

# Prefixes of the module in which a class is *defined*: a dotted path that only passes through an allowed module does not count.
COMMAND_LINE = (
    "trilemma",
    "torch.nn",
    "torch.optim",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.strategies",
    "lightning.pytorch.plugins",
    "lightning.pytorch.trainer",
    "torchmetrics",
)
CHECKPOINT = ("trilemma", "torch.nn")

# Functions are callable side effects: none is allowed unless it is listed here.
FUNCTIONS: frozenset[str] = frozenset()


def _under(module: str, prefixes: Iterable[str]) -> bool:
    return any(module == p or module.startswith(p + ".") for p in prefixes)


def locate(target: object, allowed: tuple[str, ...], where: str) -> Callable[..., Any]:
    """Find the class a `_target_` names.

    Args:
        target: Dotted path.
        allowed: Module prefixes that may be named and may define the class.
        where: Path of the config node, for the error message.

    Returns:
        The class.

    Raises:
        UserError: If the path is not a class that is defined under an allowed module.
    """
    refused = f"{where}._target_={target}: only classes defined in {', '.join(allowed)} may be named"
    if not isinstance(target, str) or not _under(target, allowed):
        raise UserError(refused)
    module_name, _, name = target.rpartition(".")
    if not _under(module_name, allowed):
        raise UserError(refused)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"{where}._target_={target}: there is no module {error.name}") from None
    found = getattr(module, name, None)
    if found is None:
        near = get_close_matches(name, [n for n in vars(module) if not n.startswith("_")], 1)
        hint = f" Did you mean {module_name}.{near[0]}?" if near else ""
        raise UserError(f"{where}._target_={target}: {module_name} has no {name}.{hint}")
    is_listed_function = target in FUNCTIONS
    if not (inspect.isclass(found) or is_listed_function) or not _under(found.__module__, allowed):
        raise UserError(refused)
    result: Callable[..., Any] = found
    return result
