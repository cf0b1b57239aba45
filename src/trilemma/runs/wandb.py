"""Weights & Biases that never stands in the way of training."""

from __future__ import annotations

import netrc
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.utilities import rank_zero_only

_SERVER = "https://api.wandb.ai"
_CONNECT_SECONDS = 3.0


class WandbLogger(LightningWandbLogger):
    """Logs a run to wandb, offline by itself where there is no login or no network.

    A run that is resumed under the same `run_id` goes on in the same wandb run. What it writes lies below `save_dir`,
    so that an offline run can be copied from a cluster and uploaded with `wandb sync`.

    Args:
        project: The wandb project.
        run_id: Identity of the run, the same after a resume.
        group: Runs shown together; the experiment.
        save_dir: The run directory.
        job_type: "train", "sample" or "evaluate".
        tags: Labels to filter by.
        offline: Whether to write locally only; None finds out.
    """

    def __init__(
        self,
        *,
        project: str,
        run_id: str,
        group: str,
        save_dir: str,
        job_type: str = "train",
        tags: Sequence[str] = (),
        offline: bool | None = None,
    ) -> None:
        # wandb takes ids without slashes only.
        identity = run_id.replace("/", "-")
        super().__init__(project=project, id=identity, name=run_id, save_dir=save_dir, log_model=False)
        folder = Path(save_dir)
        reason = _why_offline() if offline is None else ("offline=true" if offline else None)
        # `anonymous` is deprecated, and warned about even as None.
        self._wandb_init.pop("anonymous", None)
        self._wandb_init.update(group=group, job_type=job_type, tags=list(tags), settings=self._settings(reason))
        if reason is not None and os.environ.get("WANDB_MODE") != "disabled":
            self._wandb_init["mode"] = "offline"
            _say(f"wandb: offline ({reason}); to upload: wandb sync {folder / 'wandb'}/offline-run-*")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run, so that the next one in this process is another."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None

    @staticmethod
    def _settings(offline_reason: str | None) -> dict[str, object]:
        # The default of 15 s between flushes loses that much when a job is killed.
        return {"x_transaction_log_flush_interval": 1, "silent": offline_reason is not None}


def _why_offline() -> str | None:
    """Why wandb cannot be online, or None where it can, or where WANDB_MODE says what the user wants."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "dryrun"):
        return f"WANDB_MODE={mode}"
    if mode is not None:
        return None
    server = urlsplit(os.environ.get("WANDB_BASE_URL", _SERVER))
    host = server.hostname or ""
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(host):
        return "no API key: wandb login"
    try:
        socket.create_connection((host, server.port or 443), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return f"{host} cannot be reached"
    return None


def _in_netrc(host: str) -> bool:
    candidates = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for path in (Path(candidate).expanduser() for candidate in candidates):
        try:
            if path.is_file() and netrc.netrc(str(path)).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError):  # wandb will not be able to read it either
            continue
    return False


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr)
