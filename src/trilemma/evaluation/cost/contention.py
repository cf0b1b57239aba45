"""How long this process waited for a core while it was timed, because other programs held them."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

BUSY = 0.05
"""Share of waiting above which a time says more of the other programs than of the model."""


class CoreWait:
    """Measures the share of its block that this process's threads waited for a core although they could have run.

    Attributes:
        share: Waited / (ran + waited), all threads together; None where the system does not tell (it is Linux that does).
    """

    share: float | None = None

    def __enter__(self) -> Self:
        self._start = _nanoseconds()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = _nanoseconds()
        if self._start is None or end is None:
            return
        ran, waited = (max(0, after - before) for before, after in zip(self._start, end, strict=True))
        self.share = waited / (ran + waited) if ran + waited else None


def _nanoseconds() -> tuple[int, int] | None:
    """Sum over the threads of what they ran, and of what they waited in the queue of a core."""
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            first, second, _ = path.read_text().split()
        except (OSError, ValueError):  # a thread that has ended, or a system without these numbers
            continue
        ran, waited = ran + int(first), waited + int(second)
    return (ran, waited) if ran else None
