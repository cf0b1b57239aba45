"""What earlier processes of a run have left on the disk: one folder each."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = re.compile(r"(?P<offline>offline-)?run-(?P<start>\d{8}_\d{6})-(?P<id>.+)")
_INSPECT_SECONDS = 60.0


@dataclass(frozen=True, order=True)
class Segment:
    """What one process wrote of a run.

    Attributes:
        start: Local time at which it began, as `YYYYMMDD_HHMMSS`.
        folder: Its folder, `offline-run-<start>-<run id>` or `run-<start>-<run id>`.
        run_id: The run it belongs to.
        is_offline: Whether it was kept from the server.
    """

    start: str
    folder: Path
    run_id: str
    is_offline: bool

    @property
    def log(self) -> Path:
        """The file that holds everything but the media."""
        return self.folder / f"run-{self.run_id}.wandb"

    @property
    def is_sent(self) -> bool:
        """Whether wandb, or `runs.sync`, has marked it as sent."""
        return self.marker.exists()

    @property
    def marker(self) -> Path:
        """The file that says that the segment was sent: wandb's own convention."""
        return self.log.with_suffix(".wandb.synced")


def segment_of(folder: Path) -> Segment | None:
    """The segment that a folder holds, or None."""
    match = _FOLDER.fullmatch(folder.name)
    if match is None:
        return None
    segment = Segment(match["start"], folder, match["id"], is_offline=match["offline"] is not None)
    return segment if segment.log.is_file() else None


def segments(save_dir: Path, run_id: str | None = None) -> list[Segment]:
    """Segments in `<save_dir>/wandb`, oldest first; of one run where it is named."""
    folder = save_dir / "wandb"
    found = [segment_of(path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(s for s in found if s is not None and run_id in (None, s.run_id))


def inspect(segment: Segment) -> dict[str, Any] | None:
    """Summary of a segment (`state`, `summary`, `config`, ...), a torn one too; None where nothing can be read.

    It asks wandb's own command: the format of the log is no public interface.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(segment.folder)]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_INSPECT_SECONDS, check=False)
        content = json.loads(answer.stdout)
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def next_step(found: list[Segment]) -> int:
    """The number of wandb's next row: one more than the last that the segments hold, 0 where they hold none."""
    for segment in reversed(found):  # each goes on where the one before it stopped
        last = (inspect(segment) or {}).get("summary", {}).get("_step")
        if isinstance(last, int):
            return last + 1
    return 0
