"""Uploads offline wandb runs: `python -m trilemma.loggers.sync [DIR...]`, or `make sync`."""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path

from trilemma.errors import UserError
from trilemma.loggers.wandb_mode import has_login
from trilemma.loggers.wandb_segments import Segment, inspect, segment_of
from trilemma.runs.lock import LOCK_FILE

_QUIET_SECONDS = 60.0
# wandb's words for a log whose last record was cut off, and for one of which something was sent.
_TORN, _BEGUN = "incomplete record", "View run"
_BAD_MARKS = ("ERROR", "Traceback", "Not authenticated")


class SyncResult(Enum):
    """What became of a segment, as it is said to people."""

    SENT = "sent"
    TORN = "sent up to its torn end: what was being written when the process was killed is lost"
    FAILED = "not sent"
    WRITING = "left for later: a process still writes it"


def main(arguments: Sequence[str] | None = None) -> int:
    """Send what has not been sent.

    Args:
        arguments: Of the command line; those of the process where None.

    Returns:
        The exit status: 0 if all that is finished was sent whole, 1 if not, 2 if the user has to do something first.
    """
    parser = argparse.ArgumentParser(prog="python -m trilemma.loggers.sync", description="Upload offline wandb runs.")
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")], metavar="DIR")
    folders: list[Path] = parser.parse_args(arguments).folders
    try:
        outcomes = sync(folders)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if SyncResult.TORN in outcomes or SyncResult.FAILED in outcomes else 0


def sync(folders: Sequence[Path]) -> list[SyncResult]:
    """Send the offline segments below `folders` one by one, the oldest first, with a line for each on stdout.

    wandb's command says nothing by its exit status, and gives up all segments when one is torn: each gets a command of its
    own, whose output is read. What was sent is marked by `<log>.synced`, wandb's own convention, and is not sent again.

    Returns:
        What became of each segment that had not been sent.

    Raises:
        UserError: If a folder is missing, or there is something to send and no login.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: name the one that holds the runs, or wandb's own")
    waiting = sorted({s for folder in folders for s in _offline(folder) if not s.is_sent})
    if not waiting:
        print(f"wandb: nothing to send in {', '.join(map(str, folders))}")
        return []
    server = _server()
    if not has_login(server):
        raise UserError(f"{len(waiting)} runs to send, and no login for {server}: wandb login, or WANDB_API_KEY")
    outcomes = []
    for number, segment in enumerate(waiting, start=1):
        outcome, detail = (SyncResult.WRITING, "") if _is_written(segment) else _send(segment)
        outcomes.append(outcome)
        print(f"[{number}/{len(waiting)}] {segment.folder}: {outcome.value}{detail}", flush=True)
    return outcomes


def _offline(top: Path) -> Iterator[Segment]:
    """Offline segments at or below `top`."""
    for path, names, _ in os.walk(top):
        segment = segment_of(Path(path))
        if segment is None:
            continue
        names.clear()  # nothing further lies in a segment
        if segment.is_offline:
            yield segment


def _server() -> str:
    import wandb

    return str(wandb.setup().settings.base_url)


def _send(segment: Segment) -> tuple[SyncResult, str]:
    command = [sys.executable, "-m", "wandb", "sync", str(segment.folder)]
    # WANDB_MODE=offline, set for the runs, is not meant for this.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    environment.setdefault("WANDB_ERROR_REPORTING", "false")
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line.strip() for line in (answer.stdout + answer.stderr).splitlines() if line.strip()]
    bad = [line for line in lines if any(mark in line for mark in _BAD_MARKS)]
    if segment.is_sent and not bad:
        return SyncResult.SENT, ""
    if len(bad) == 1 and _TORN in bad[0] and any(_BEGUN in line for line in lines):
        # A log that was cut off stays so: sending it again would send its rows twice.
        segment.marker.touch()
        return SyncResult.TORN, ""
    return SyncResult.FAILED, f" ({(bad or lines or ['wandb sync said nothing'])[-1]})"


def _is_written(segment: Segment) -> bool:
    """Whether a process may still add to the segment: sent now, the rest of it would never be."""
    if _is_locked(segment.folder.parent.parent / LOCK_FILE):
        newest = max(s.start for s in map(segment_of, segment.folder.parent.iterdir()) if s is not None)
        return segment.start == newest
    if time.time() - segment.log.stat().st_mtime > _QUIET_SECONDS:
        return False
    return (inspect(segment) or {}).get("state") == "running"


def _is_locked(path: Path) -> bool:
    """Whether another process holds a run's lock; a lock that cannot be asked for counts as free."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


if __name__ == "__main__":
    raise SystemExit(main())
