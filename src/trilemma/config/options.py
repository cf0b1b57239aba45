"""Options of a config group that the command line can choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trilemma.config.small_options import group_nodes
from trilemma.config.targets import COMMAND_LINE, locate


def group_targets(group: str) -> dict[str, str]:
    """Map a config group's options to the classes that their files name; options that name none are left out."""
    return {name: node["_target_"] for name, node in group_nodes(group).items() if "_target_" in node}


def options_of(group: str, wanted: Callable[[type[Any]], bool]) -> list[str]:
    """List a config group's options whose class is wanted."""
    found = []
    for name, target in group_targets(group).items():
        kind = locate(target, COMMAND_LINE, group)
        if isinstance(kind, type) and wanted(kind):
            found.append(name)
    return found
