"""How much wandb records of the machine and the command besides what is logged."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

Profile = Literal["private", "full"]

# Each alone leaves something: the command line, the host, the job of the scheduler, the packages, what is printed.
_PRIVATE: dict[str, Any] = {
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "disable_git": True,
    "disable_code": True,
    "console": "off",
    "host": "anon",
    # Offline nothing reads them, online they would go to the server.
    "username": "anon",
    "email": "",
    "program": "train",
    "program_relpath": "train",
}
_FOLDERS = {"WANDB_DATA_DIR": "data", "WANDB_CACHE_DIR": "cache", "WANDB_ARTIFACT_DIR": "artifacts"}
_ours: dict[str, str] = {}  # variables that this module has set: those of the user are left alone


def profile_settings(profile: Profile) -> dict[str, Any]:
    """Settings of a run: "private" sends what is logged and no more, "full" is wandb's own default."""
    return dict(_PRIVATE) if profile == "private" else {}


def set_up(profile: Profile, save_dir: Path) -> str:
    """Start wandb with what it reads from the process itself: where it keeps files, all below `save_dir`, what it reports.

    The folder of its configuration is not moved: it says which server the user has logged in to.

    Returns:
        The address of the server.
    """
    for name, folder in _FOLDERS.items():
        _set(name, str(save_dir / "wandb" / folder))
    # Who the user is, asked for greetings, takes 10 s more where a server does not answer.
    _set("WANDB_X_DISABLE_VIEWER", "true")
    if profile == "private":
        _set("WANDB_ERROR_REPORTING", "false")
        _set("WANDB_DISABLE_CODE", "true")
    import wandb

    server = str(wandb.setup().settings.base_url)  # reads the environment, once
    if profile == "private":  # debug.log would hold the paths of the run
        logging.getLogger("wandb").setLevel(logging.WARNING)
    return server


def _set(name: str, value: str) -> None:
    if os.environ.get(name) in (None, _ours.get(name)):
        os.environ[name] = _ours[name] = value
