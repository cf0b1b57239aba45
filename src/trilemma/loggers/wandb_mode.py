"""Whether a wandb run goes to a server or to the disk."""

from __future__ import annotations

import os
from typing import Literal
from urllib.error import HTTPError
from urllib.request import build_opener

import wandb
from wandb.sdk.lib.wbauth import authenticate_session

Mode = Literal["auto", "online", "offline", "disabled"]

_ANSWER_SECONDS = 2.0
_MODES: dict[str, Mode] = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}


def decide(settings: wandb.Settings) -> tuple[Mode, str | None]:
    """Settle what `auto` is before anything is opened.

    It is what WANDB_MODE or `wandb offline` say; without them a run is online if there is a login and the server answers
    within 2 s, and offline otherwise.

    Args:
        settings: Of the process.

    Returns:
        "online", "offline" or "disabled", and why it is offline.
    """
    if os.environ.get("WANDB_MODE") or settings.mode != "online":
        found = _MODES.get(settings.mode, "online")
        return found, f"WANDB_MODE={settings.mode}"
    reason = why_offline(settings.base_url)
    return ("offline" if reason else "online"), reason


def why_offline(server: str) -> str | None:
    """Say what keeps a run from the server: no login, or no answer; None where nothing does."""
    try:
        if authenticate_session(host=server, source="trilemma", prompt=False, update_session=False) is None:
            return "no API key: wandb login, or WANDB_API_KEY"
    except wandb.Error as error:
        return str(error)
    try:
        build_opener().open(f"{server}/graphql", timeout=_ANSWER_SECONDS).close()
    except HTTPError:
        pass  # an answer
    except OSError as error:
        return f"{server} cannot be reached: {getattr(error, 'reason', error)}"
    return None
