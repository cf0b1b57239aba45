"""Uploads offline wandb runs: `python -m trilemma.loggers.sync [DIR...]`, or `make sync`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trilemma.errors import UserError
from trilemma.loggers.wandb_segments import inspect, marker, segments, start_of
from trilemma.runs.lock import is_held

_QUIET_SECONDS = 60.0
_TORN = "incomplete record"  # wandb's words for a log whose last record was cut off: it then marks nothing as sent


def main(arguments: Sequence[str] | None = None) -> int:
    """Send what has not been sent.

    Args:
        arguments: Of the command line; those of the process where None.

    Returns:
        The exit status: 0 if all that is finished was sent whole, 1 if not, 2 if the user has to do something first.
    """
    parser = argparse.ArgumentParser(prog="python -m trilemma.loggers.sync", description="Upload offline wandb runs.")
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")], metavar="DIR")
    try:
        return 0 if sync(parser.parse_args(arguments).folders) else 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def sync(folders: Sequence[Path]) -> bool:
    """Send the offline segments below `folders` one by one, the oldest first, with a line for each on stdout.

    Each gets a command of its own: wandb gives up all segments of a run when one is torn. What was sent is marked by
    `<log>.synced`, wandb's own convention, and is not sent again.

    Returns:
        Whether all that is finished was sent whole.

    Raises:
        UserError: If a folder is missing, or there is something to send and no login or no server.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name the one that holds the runs, or wandb's own")
    found = {log for folder in folders for log in folder.resolve().rglob("run-*.wandb")}
    offline = [log for log in found if log.parent.name.startswith("offline-run-") and not marker(log).exists()]
    if not offline:
        print(f"wandb: nothing to send in {', '.join(map(str, folders))}")
        return True
    _check_server(len(offline))
    all_sent = True
    for number, log in enumerate(sorted(offline, key=start_of), start=1):
        written = _is_written(log)
        is_sent, said = (True, "left for later: a process still writes it") if written else _send(log)
        all_sent = all_sent and is_sent
        print(f"[{number}/{len(offline)}] {log.parent}: {said}", flush=True)
    return all_sent


def _check_server(num: int) -> None:
    import wandb

    from trilemma.loggers.wandb_mode import why_offline

    if reason := why_offline(wandb.setup().settings.base_url):
        raise UserError(f"{num} runs to send, and {reason}")


def _send(log: Path) -> tuple[bool, str]:
    # WANDB_MODE=offline, set for the runs, is not meant for this.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", str(log.parent)]
    answer = subprocess.run(
        command, capture_output=True, text=True, env={**environment, "WANDB_ERROR_REPORTING": "false"}, check=False
    )
    if marker(log).exists():
        return True, "sent"
    said = (answer.stdout + answer.stderr).strip()
    if _TORN in said and inspect(log).get("run_id"):
        # A log that was cut off stays so: sending it again would send its rows twice.
        marker(log).touch()
        return False, "sent up to its torn end: what was being written when the process was killed is lost"
    return False, f"not sent ({said.rpartition(chr(10))[2]})"


def _is_written(log: Path) -> bool:
    """Whether a process may still add to the segment: sent now, the rest of it would never be."""
    run_dir = log.parent.parent.parent
    if is_held(run_dir):
        run_id = log.stem.removeprefix("run-")
        return segments(run_dir, run_id)[-1] == log
    return time.time() - log.stat().st_mtime < _QUIET_SECONDS and inspect(log).get("state") == "running"


if __name__ == "__main__":
    raise SystemExit(main())
