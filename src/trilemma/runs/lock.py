"""One process a run."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trilemma.errors import UserError

LOCK_FILE = ".lock"
_held: set[Path] = set()  # POSIX locks do not exclude the process that holds them


@contextmanager
def run_lock(run_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a run directory, made where missing, for as long as the block lasts.

    The lock is the operating system's and belongs to this very process: it goes when the process does, by `kill -9`
    too, and forked children (loader workers, loggers) that outlive it do not keep it.

    Raises:
        UserError: If another process holds the run, or the directory cannot be written.
    """
    folder = Path(run_dir).resolve()
    if folder in _held:  # and closing a second descriptor would drop the lock
        raise _busy(folder, f"this process ({os.getpid()})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose a folder you may write to") from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise _busy(folder, _holder(descriptor)) from error
        except OSError as error:
            raise UserError(
                f"cannot lock {folder}: {error.strerror}; choose a folder on a file system that has locks"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        _held.add(folder)
        yield
    finally:
        _held.discard(folder)
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, and has not yet written its name
        return "another process"


def _busy(folder: Path, holder: str) -> UserError:
    return UserError(f"{folder} is in use by {holder}: wait for it to end, or name this run anew with run.id=NAME")
