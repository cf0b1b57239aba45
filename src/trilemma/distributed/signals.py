"""Signals that ask a program to stop: obeyed at once where nothing can be lost, else noted until everything is written.

SIGUSR1, SIGUSR2 and SIGTERM come from a cluster that preempts the job (exit status 75: to be run again), SIGINT from Ctrl-C
(130). A handler only notes the signal, or raises; during an import it ends the program instead. Where ranks have to stop at
the same batch, `callbacks.preemption` reads the noted signals.

This module imports quickly: an entry point installs the handlers before it imports torch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from trilemma.errors import INTERRUPTED, PREEMPTED, Stopped

PREEMPTION = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
ALL = (*PREEMPTION, signal.SIGINT)


@dataclass
class _Listening:
    """The signal handling of this process.

    Attributes:
        pid: The process that installed the handlers; a fork of it does not handle signals.
        previous: The handlers before.
        speaks: Whether this process prints that it stops.
        waiting: Signals that are only noted.
        noted: The first signal of each kind that came, by the status it asks for.
    """

    pid: int
    previous: dict[int, Any]
    speaks: bool
    waiting: set[int] = field(default_factory=set)
    noted: dict[int, int] = field(default_factory=dict)


_listening: _Listening | None = None


def listen(*, wait: bool = False) -> bool:
    """Install handlers for signals that ask to stop. Each then raises `Stopped` (Ctrl-C: KeyboardInterrupt) wherever the program is.

    Args:
        wait: Only note them from the start, and say nothing: for a process that stops when the first one of its job does.

    Returns:
        Whether it was this call that took them over: not twice, and in the main thread only.
    """
    global _listening
    if threading.current_thread() is not threading.main_thread() or (
        _listening is not None and _listening.pid == os.getpid()
    ):
        return False
    _listening = _Listening(os.getpid(), {}, speaks=not wait, waiting=set(ALL) if wait else set())
    for number in ALL:
        _listening.previous[number] = signal.signal(number, _on_signal)
    return True


def stop_listening() -> None:
    """Restore the previous handlers."""
    global _listening
    if _listening is not None and _listening.pid == os.getpid():
        for number, handler in _listening.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _listening = None


@contextmanager
def waiting(*numbers: int) -> Iterator[None]:
    """Only note these signals inside the block, which calls `asked` or `check` where it can stop."""
    if _listening is None:
        yield
        return
    before = set(_listening.waiting)
    _listening.waiting |= set(numbers)
    try:
        yield
    finally:
        if _listening is not None:
            _listening.waiting = before


@contextmanager
def at_once() -> Iterator[None]:
    """Raise at every signal, inside a block that only notes them, for code that never calls `asked`."""
    check()
    if _listening is None:
        yield
        return
    before, _listening.waiting = _listening.waiting, set()
    try:
        yield
    finally:
        if _listening is not None:
            _listening.waiting = before


def asked() -> int:
    """Compute the exit status that the noted signals ask for: 130 (Ctrl-C, which wins) or 75; 0 for none."""
    return max(_listening.noted, default=0) if _listening is not None else 0


def name() -> str:
    """Name the signal that decides, such as SIGUSR1."""
    return (
        signal.Signals(_listening.noted[asked()]).name
        if _listening is not None and _listening.noted
        else "a signal to another process"
    )


def check() -> None:
    """Raise if a signal asked to stop, before there is anything to lose.

    Raises:
        Stopped: With status 75, or 130.
    """
    if status := asked():
        raise Stopped(status, f"stopped by {name()} before there was anything to write; the same command starts again")


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _listening is None or _listening.pid != os.getpid():
        return
    status = INTERRUPTED if number == signal.SIGINT else PREEMPTED
    again = status in _listening.noted
    _listening.noted.setdefault(status, number)
    if number not in _listening.waiting:
        if _imports(frame):  # an exception would leave a half-imported module, or be taken for a missing one
            os.write(2, f"stopped by {name()}; the same command goes on\n".encode())
            os._exit(status)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(status, f"stopped by {name()}; the same command goes on")
    if number == signal.SIGINT and again:
        raise KeyboardInterrupt
    if _listening.speaks and not again:
        hint = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        # Not print: the signal may have interrupted one.
        os.write(2, f"\n{signal.Signals(number).name}: stopping as soon as everything is written{hint}.\n".encode())


def _imports(frame: FrameType | None) -> bool:
    """Check whether the signal interrupted an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _in_child() -> None:
    """Ignore signals in a forked child (a loader's worker): a cluster signals every process, and the parent acts."""
    global _listening
    if _listening is not None:
        _listening = None
        for number in ALL:
            signal.signal(number, signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_child)
