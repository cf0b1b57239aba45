"""Files that any number of independent processes produce together, each file once.

Each process begins with its own share, then works on what is left, so a killed process loses one file only. A file
must not depend on the process that makes it, and is written whole or not at all. Locks only avoid
double work: where a file system has none, some files are made twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trilemma.data.base import SplitName
from trilemma.data.files import try_lock
from trilemma.errors import UserError

POLL_SECONDS = 0.2
_SILENCE = 60  # seconds between lines


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


def make_missing(
    folder: Path,
    shards: Sequence[Shard],
    *,
    stands: Callable[[Shard], bool],
    write: Callable[[Shard], None],
    report: Report,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Produce the files that are missing; returns when all are there, whichever process wrote them.

    Args:
        folder: Where they go; made where missing.
        shards: All of them.
        stands: Checks whether one is there.
        write: Writes one, atomically.
        report: Counts each file.
        rank: Which share to begin with.
        world_size: Number of shares.

    Raises:
        UserError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder") from None
    mine = shards[rank::world_size]
    others = set(shards).difference(mine)
    # Backwards through the others' shares, since the others begin at the front.
    pending = [*mine, *(shard for shard in reversed(shards) if shard in others)]
    while pending:
        left, progressed = [], False
        for shard in pending:
            if stands(shard):
                report.advance(len(shard), made=False)
                continue
            with try_lock(lock_of(folder, shard)) as taken:
                if taken is False:
                    left.append(shard)
                    continue
                already = stands(shard)  # another process may have made it meanwhile
                if not already:
                    if taken:
                        for leftover in folder.glob(f".tmp-{shard.file}*"):
                            leftover.unlink(missing_ok=True)
                    write(shard)
                report.advance(len(shard), made=not already)
                progressed = True
        pending = left
        if pending and not progressed:
            time.sleep(POLL_SECONDS)


def lock_of(folder: Path, shard: Shard) -> Path:
    """Name the lock of a file that is being written."""
    return folder / f".{shard.file}.lock"


class Report:
    """Reports progress: a bar in a terminal, else a line now and then.

    Args:
        what: What is done to the images.
        num_images: How many there are.
        quiet: Say nothing.

    Attributes:
        made: How many of them were done here.
    """

    def __init__(self, what: str, num_images: int, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        terminal = get_console().is_terminal
        self._bar = Progress(*columns, transient=True, disable=quiet or not terminal)
        self._task = self._bar.add_task(f"{what} images", total=num_images)
        self._what, self._num_images, self._done, self.made = what, num_images, 0, 0
        self._speaks = not quiet and not terminal
        self._start = self._said = time.monotonic()

    def __enter__(self) -> Report:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, num_images: int, *, made: bool) -> None:
        """Count a finished file, whether made here or not."""
        self._done += num_images
        self.made += num_images * made
        self._bar.advance(self._task, num_images)
        now = time.monotonic()
        if self._speaks and now - self._said > _SILENCE:
            self._said = now
            rate = self.made / (now - self._start)
            print(f"{self._what}: {self._done} of {self._num_images} images; {rate:.0f} images/s here", flush=True)
