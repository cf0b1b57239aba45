"""How much wandb records of the machine and the command besides what is logged."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import wandb

from trilemma.errors import UserError

Profile = Literal["private", "full"]

# Each alone leaves something: the command line, the host, the job of the scheduler, the packages, what is printed.
PRIVATE: dict[str, Any] = {
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


def set_up(profile: Profile, save_dir: Path) -> wandb.Settings:
    """Start wandb with what it reads from the process itself: where its own logs go, what it reports to its makers.

    Returns:
        The settings of the process: of the environment and of the files that `wandb login` writes.

    Raises:
        UserError: If a variable WANDB_... has no valid value.
    """
    os.environ["WANDB_CACHE_DIR"] = str(save_dir / "wandb" / "cache")
    if profile == "private":
        os.environ["WANDB_ERROR_REPORTING"] = "false"
    # Who the user is, asked for greetings, takes 10 s more where a server does not answer.
    with refusals():
        settings = wandb.setup(wandb.Settings(x_disable_viewer=True)).settings
    if profile == "private":  # debug.log would hold the paths of the run
        logging.getLogger("wandb").setLevel(logging.WARNING)
    return settings


@contextmanager
def refusals() -> Iterator[None]:
    """Raise what wandb refuses of its settings as a `UserError` of one line."""
    try:
        yield
    except (wandb.Error, ValueError) as error:  # pydantic's has many lines
        said = " ".join(str(error).split()).partition(" For further information")[0]
        raise UserError(f"wandb does not take logger.wandb or a variable WANDB_...: {said}") from None
