"""Whether a sampler can walk a model's process, seen before anything is drawn."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from trilemma.config import CONF
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.samplers.base import Sampler


def check_fits(sampler: Sampler, model: Family) -> None:
    """See that the sampler walks the model's kind of process, and its grid and steps fit.

    Raises:
        UserError: If not, with what would fit.
    """
    process = getattr(model, "process", None)
    if isinstance(process, sampler.process_type):
        sampler.check(process)
        return
    name, kind = type(sampler).__name__, sampler.process_type.__name__
    if process is None:
        raise UserError(
            f"sampler {name} walks a {kind}, and a {type(model).__name__} has no process: leave out sampler="
        )
    raise UserError(
        f"sampler {name} walks a {kind}, and this {type(model).__name__} was trained on a {type(process).__name__}: choose "
        f"sampler={' or sampler='.join(_names_for(process))}"
    )


def sampler_options() -> dict[str, str]:
    """Names of samplers on the command line, each with the class it stands for."""
    nodes = {
        path.stem: OmegaConf.to_container(OmegaConf.load(path)) for path in sorted((CONF / "sampler").glob("*.yaml"))
    }
    return {name: node["_target_"] for name, node in nodes.items() if isinstance(node, dict) and "_target_" in node}


def _names_for(process: Any) -> list[str]:
    found = []
    for name, target in sampler_options().items():
        kind = getattr(locate(target, COMMAND_LINE, "sampler"), "process_type", object)
        if isinstance(process, kind):
            found.append(name)
    return found
