"""Signals that ask a program to stop: heeded at once where nothing can be lost, else noted until everything is written.

SIGUSR1, SIGUSR2 and SIGTERM come from a cluster that wants its machine back (exit status 75: run me again), SIGINT from a
user at the keyboard (130). A handler does nothing but note the signal, or raise; in the midst of an import it ends the
program instead. Where ranks have to stop at the same batch, `callbacks.preemption` asks for what was noted.

It imports nothing that takes time: an entry point listens before it imports torch.
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
class _Ears:
    """What is listened to in this process.

    Attributes:
        pid: The process; a fork of it has none.
        previous: The handlers that were there before.
        speaks: Whether it is this process that says what is going on.
        waiting: Signals that are only noted.
        noted: The first signal of each kind that came, by the status it asks for.
    """

    pid: int
    previous: dict[int, Any]
    speaks: bool
    waiting: set[int] = field(default_factory=set)
    noted: dict[int, int] = field(default_factory=dict)


_ears: _Ears | None = None


def listen(*, wait: bool = False) -> bool:
    """Take over the signals that ask to stop. From here on, each raises `Stopped` (Ctrl-C: KeyboardInterrupt) where it finds the program.

    Args:
        wait: Only note them from the start, and say nothing: for a process that stops when the first one of its job does.

    Returns:
        Whether it was this call that took them over: not twice, and in the main thread only.
    """
    global _ears
    if threading.current_thread() is not threading.main_thread() or (_ears is not None and _ears.pid == os.getpid()):
        return False
    _ears = _Ears(os.getpid(), {}, speaks=not wait, waiting=set(ALL) if wait else set())
    for number in ALL:
        _ears.previous[number] = signal.signal(number, _on_signal)
    return True


def stop_listening() -> None:
    """Give the signals back."""
    global _ears
    if _ears is not None and _ears.pid == os.getpid():
        for number, handler in _ears.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _ears = None


@contextmanager
def waiting(*numbers: int) -> Iterator[None]:
    """Only note these signals inside the block, which asks `asked` or `check` where it can stop."""
    if _ears is None:
        yield
        return
    before = set(_ears.waiting)
    _ears.waiting |= set(numbers)
    try:
        yield
    finally:
        if _ears is not None:
            _ears.waiting = before


@contextmanager
def at_once() -> Iterator[None]:
    """Heed every signal where it finds the program, inside a block that was told to wait: nobody in here asks for what was noted."""
    check()
    if _ears is None:
        yield
        return
    before, _ears.waiting = _ears.waiting, set()
    try:
        yield
    finally:
        if _ears is not None:
            _ears.waiting = before


def asked() -> int:
    """The exit status that the signals noted so far ask for: 75, 130 (which wins: the user has spoken), or 0 for none."""
    return max(_ears.noted, default=0) if _ears is not None else 0


def name() -> str:
    """Of the signal that decides: SIGUSR1, say."""
    return (
        signal.Signals(_ears.noted[asked()]).name
        if _ears is not None and _ears.noted
        else "a signal to another process"
    )


def check() -> None:
    """Stop here if that was asked for: nothing is lost.

    Raises:
        Stopped: With status 75, or 130.
    """
    if status := asked():
        raise Stopped(status, f"stopped by {name()} before there was anything to write; the same command starts again")


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _ears is None or _ears.pid != os.getpid():
        return
    status = INTERRUPTED if number == signal.SIGINT else PREEMPTED
    again = status in _ears.noted
    _ears.noted.setdefault(status, number)
    if number not in _ears.waiting:
        if _imports(frame):  # an exception leaves half a module behind, or is taken for an absent one
            os.write(2, f"stopped by {name()}; the same command goes on\n".encode())
            os._exit(status)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(status, f"stopped by {name()}; the same command goes on")
    if number == signal.SIGINT and again:
        raise KeyboardInterrupt
    if _ears.speaks and not again:
        hint = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        # Not print: the signal may have come in the midst of one.
        os.write(2, f"\n{signal.Signals(number).name}: stopping as soon as everything is written{hint}.\n".encode())


def _imports(frame: FrameType | None) -> bool:
    """Whether the signal found the program in the midst of an import."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _in_child() -> None:
    """A forked child (a loader's worker) leaves it to its parent to act: a cluster signals every process of a job."""
    global _ears
    if _ears is not None:
        _ears = None
        for number in ALL:
            signal.signal(number, signal.SIG_IGN)


os.register_at_fork(after_in_child=_in_child)
