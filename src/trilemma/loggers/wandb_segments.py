"""What the processes of a run leave on the disk: a segment each, `[offline-]run-<start>-<run id>/run-<run id>.wandb`."""

from __future__ import annotations

import glob
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_INSPECT_SECONDS = 60.0


def segments(save_dir: Path, run_id: str) -> list[Path]:
    """Logs of a run's segments in `<save_dir>/wandb`, oldest first."""
    name = glob.escape(run_id)
    return sorted((save_dir / "wandb").glob(f"*run-????????_??????-{name}/run-{name}.wandb"), key=start_of)


def start_of(log: Path) -> str:
    """Local time at which a segment began, as `YYYYMMDD_HHMMSS`."""
    return log.parent.name.removeprefix("offline-")[4:19]


def marker(log: Path) -> Path:
    """The file that says that a segment was sent: wandb's own convention."""
    return log.with_suffix(".wandb.synced")


def inspect(log: Path) -> dict[str, Any]:
    """Summary of a segment (`state`, `summary`, `config`, ...), a torn one too; empty where nothing can be read.

    It asks wandb's own command: the format of the log is no public interface.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log.parent)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_INSPECT_SECONDS, check=False)
        return dict(json.loads(answer.stdout))
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return {}


def next_step(logs: list[Path]) -> int:
    """The number of wandb's next row: one more than the last that the segments hold, 0 where they hold none."""
    for log in reversed(logs):  # each goes on where the one before it stopped
        last = inspect(log).get("summary", {}).get("_step")
        if isinstance(last, int):
            return last + 1
    return 0
