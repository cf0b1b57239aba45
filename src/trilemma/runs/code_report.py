"""How far the making of codes is."""

from __future__ import annotations

import time

from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SILENCE = 60  # seconds between lines


class CodeReport:
    """How far it is: a bar in a terminal, else a line now and then.

    Args:
        num_images: How many images get codes.
        quiet: Say nothing.

    Attributes:
        made: How many of them got theirs here.
    """

    def __init__(self, num_images: int, *, quiet: bool) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        terminal = get_console().is_terminal
        self._bar = Progress(*columns, transient=True, disable=quiet or not terminal)
        self._task = self._bar.add_task("encoding images", total=num_images)
        self._num_images, self._done, self.made = num_images, 0, 0
        self._speaks = not quiet and not terminal
        self._start = self._said = time.monotonic()

    def __enter__(self) -> CodeReport:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, num_images: int, *, made: bool) -> None:
        """Count a shard that stands, made here or not."""
        self._done += num_images
        self.made += num_images * made
        self._bar.advance(self._task, num_images)
        now = time.monotonic()
        if self._speaks and now - self._said > _SILENCE:
            self._said = now
            rate = self.made / (now - self._start)
            print(f"codes: {self._done} of {self._num_images} images stand; {rate:.0f} images/s here", flush=True)
