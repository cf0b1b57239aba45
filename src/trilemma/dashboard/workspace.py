"""What `python -m trilemma.dashboard` does: build the workspace, and save or print it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from omegaconf import DictConfig

from trilemma.config.build import build
from trilemma.config.check import check_config
from trilemma.config.nodes import plain
from trilemma.dashboard.panels import Section
from trilemma.errors import UserError

SCHEMA: dict[str, Any] = {
    "dashboard": {"name": str, "sections": "targets"},
    "entity": str | None,
    "project": str,
    "extractor": str,
    "save": bool,
}


def dashboard(cfg: DictConfig) -> None:
    """Save the workspace that `cfg` describes as a new view of the project, or print it.

    Raises:
        UserError: If a panel is wrong, wandb-workspaces is missing, or wandb takes nothing from here.
    """
    check_config(cfg, SCHEMA)
    sections = sections_of(cfg)
    if not cfg.save:
        print(json.dumps(to_json(cfg.dashboard.name, sections, entity=cfg.entity or "", project=cfg.project), indent=2))
        return
    workspaces, reports = _packages()
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        entity = cfg.entity or wandb.Api().default_entity or ""
        view = _workspace(workspaces, reports, cfg.dashboard.name, sections, entity=entity, project=cfg.project)
        view.save()
    except (wandb.Error, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"wandb does not take the dashboard ({reason}): wandb login, or print it with save=false"
        ) from error
    print(view.url)


def sections_of(cfg: DictConfig) -> list[Section]:
    """The sections of a configuration, built and in order.

    Raises:
        UserError: If one is not a section.
    """
    sections = list(build(plain(cfg, "dashboard.sections"), where="dashboard.sections").values())
    if not sections or not all(isinstance(section, Section) for section in sections):
        raise UserError("dashboard.sections: each needs _target_: trilemma.dashboard.panels.Section")
    return sections


def to_json(name: str, sections: Sequence[Section], *, entity: str, project: str) -> dict[str, Any]:
    """The workspace as wandb stores it, without the random ids; needs no login.

    Args:
        name: Of the view.
        sections: From top to bottom.
        entity: User or team.
        project: The wandb project.

    Raises:
        UserError: If wandb-workspaces is missing.
    """
    workspace = _workspace(*_packages(), name, sections, entity=entity, project=project)
    # There is no public way to see what `save` would send.
    model = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)
    plain_model: dict[str, Any] = _without_ids(json.loads(model))
    return plain_model


def _workspace(
    workspaces: ModuleType, reports: ModuleType, name: str, sections: Sequence[Section], *, entity: str, project: str
) -> Any:
    built = [
        workspaces.Section(
            name=section.title, is_open=section.is_open, panels=[panel.to_wandb(reports) for panel in section.panels]
        )
        for section in sections
    ]
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=built, auto_generate_panels=False)


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the package's own use of pydantic
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise UserError(
            f"the dashboard needs {error.name}: pip install -c constraints.txt -e '.[dashboard]'"
        ) from error
    return workspaces, reports


def _without_ids(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_ids(value) for key, value in node.items() if key != "__id__"}
    return [_without_ids(value) for value in node] if isinstance(node, list) else node
