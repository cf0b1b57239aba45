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
        spent = [
            (ran - self._start.get(thread, (0, 0))[0], waited - self._start.get(thread, (0, 0))[1])
            for thread, (ran, waited) in _nanoseconds().items()
        ]
        ran, waited = sum(r for r, _ in spent), sum(w for _, w in spent)
        self.share = waited / (ran + waited) if ran + waited else None


def _nanoseconds() -> dict[str, tuple[int, int]]:
    """Read what each thread ran, and what it waited in the queue of a core; empty where the system does not tell.

    By thread: the sum of all falls when one ends.
    """
    found = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            ran, waited, _ = path.read_text().split()
        except (OSError, ValueError):  # a thread that has ended, or a system without these numbers
            continue
        found[path.parent.name] = (int(ran), int(waited))
    return found
