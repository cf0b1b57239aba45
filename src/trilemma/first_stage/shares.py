"""Files that the processes of a job make together, each its share, and each file whole or not at all.

What is missing is decided once and divided once: file i is made by process i mod n. A file is done when it has its name, so the same
command makes what a killed one left undone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from rich import get_console
from rich.progress import Progress

from trilemma.data.base import SplitName
from trilemma.distributed.job import Job
from trilemma.errors import TrainingError, UserError

_SILENCE = 60.0  # seconds between lines where there is no terminal
_STALE = 3600.0  # seconds after which no process writes to a temporary file any more


@dataclass(frozen=True)
class Shard:
    """A file for images `start` to `stop` of a split."""

    file: str
    split: SplitName
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def cut(split: SplitName, num: int, size: int, suffix: str) -> list[Shard]:
    """Divide `num` images into shards of `size`, the last one with the rest: train-00000.npy, train-00001.npy, ..."""
    return [
        Shard(f"{split}-{i:05d}{suffix}", split, i * size, min(num, (i + 1) * size)) for i in range(-(-num // size))
    ]


def make_share(
    job: Job, missing: Callable[[], Sequence[Shard]], write: Callable[[Shard], None], *, what: str, quiet: bool = False
) -> None:
    """Make this process's share of the files that are missing; returns when all processes have made theirs.

    Args:
        job: All its processes call this at once.
        missing: Lists what is not there yet; asked in rank 0.
        write: Writes one file, atomically.
        what: What is done to the images, for the progress.
        quiet: Show no progress.

    Raises:
        TrainingError: If another process is gone.
    """
    if job.world_size == 1:
        shards = list(missing())
    else:
        shards = [Shard(*one) for one in job.broadcast(f"{what}: missing", lambda: [astuple(one) for one in missing()])]
        job.join()
    for shard in _counted(shards[job.rank :: job.world_size], what, quiet=quiet or not job.is_first):
        write(shard)
    try:
        job.leave()
    except RuntimeError:
        raise TrainingError(
            "another process of this job is gone; it may have said why. The same command makes what is missing"
        ) from None


@contextmanager
def written_folder(folder: Path) -> Iterator[None]:
    """Make a folder; when the block ends, remove what processes that were killed have left in it.

    Raises:
        UserError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    yield
    for path in folder.glob(".tmp-*"):
        if time.time() - path.stat().st_mtime > _STALE:
            path.unlink(missing_ok=True)


def _counted(shards: Sequence[Shard], what: str, *, quiet: bool) -> Iterator[Shard]:
    """Yield the shards: with a bar in a terminal, else with a line now and then."""
    terminal = get_console().is_terminal
    said, done, total = time.monotonic(), 0, sum(map(len, shards))
    with Progress(transient=True, disable=quiet or not terminal) as bar:
        task = bar.add_task(f"{what} images", total=total)
        for shard in shards:
            yield shard
            done += len(shard)
            bar.advance(task, len(shard))
            if not quiet and not terminal and time.monotonic() - said > _SILENCE:
                said = time.monotonic()
                print(f"{what}: {done} of {total} images of this process", flush=True)
