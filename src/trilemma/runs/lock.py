"""The lock of a run directory: one process a run."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trilemma.distributed import signals
from trilemma.errors import PREEMPTED, Stopped, UserError

LOCK_FILE = ".lock"
_PATIENCE = 180.0  # seconds that a requeued SLURM job waits for its predecessor to end
_held: set[Path] = set()  # POSIX locks do not exclude the process that holds them


@contextmanager
def run_lock(
    run_dir: str | os.PathLike[str], slurm_job: str | None = None, *, patience: float = _PATIENCE
) -> Iterator[None]:
    """Hold the lock of a run directory, created where missing, for as long as the block lasts.

    A directory that was empty and holds nothing else in the end goes again: a command that was refused leaves nothing.

    The lock is the operating system's and belongs to this very process: it goes when the process does, by `kill -9`
    too, and forked children (loader workers, loggers) that outlive it do not keep it.

    A requeued SLURM job may start before its predecessor has ended, for example on a lost node: it waits for
    that.

    Args:
        run_dir: The directory.
        slurm_job: The SLURM job that this process is of.
        patience: Seconds to wait for a process of the same SLURM job.

    Raises:
        UserError: If another process holds the run, or the directory cannot be written.
        Stopped: With status 75, if a process of the same SLURM job still holds it after all that time.
    """
    folder = Path(run_dir).resolve()
    if folder in _held:  # closing a second descriptor would release the lock
        raise _busy(folder, f"this process ({os.getpid()})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        was_empty = not os.listdir(folder)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another place with paths.output_dir=..."
        ) from error
    try:
        _take(descriptor, folder, slurm_job, patience)
        if os.fstat(descriptor).st_nlink == 0:  # a refused command has just removed it
            raise _busy(folder, "a command that is just ending")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "slurm_job": slurm_job}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        except OSError as error:  # a full disk
            raise UserError(
                f"cannot write {folder / LOCK_FILE}: {error.strerror}; free some space or choose a folder you may write to"
            ) from error
        _held.add(folder)
        try:
            yield
        finally:
            if was_empty and os.listdir(folder) == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                with suppress(OSError):
                    folder.rmdir()
    finally:
        _held.discard(folder)
        os.close(descriptor)


def is_held(run_dir: Path) -> bool:
    """Whether another process holds a run directory; a lock that cannot be asked for counts as free."""
    try:
        with (run_dir / LOCK_FILE).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        return error.filename is None  # of the lock, not of the file
    except OSError:
        return False
    return False


def _take(descriptor: int, folder: Path, slurm_job: str | None, patience: float) -> None:
    end, said = time.monotonic() + patience, False
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = _holder(descriptor)
            name = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
            if slurm_job is None or holder.get("slurm_job") != slurm_job:
                raise _busy(folder, name) from error
            if time.monotonic() > end:
                line = f"{folder} is still in use by {name} of this same SLURM job ({slurm_job}); run it again when that is gone"
                raise Stopped(PREEMPTED, line) from error
            if not said:
                print(f"waiting for {name}, of this SLURM job before it was requeued, to end", file=sys.stderr)
                said = True
            signals.check()
            time.sleep(1)
        except OSError as error:
            raise UserError(
                f"cannot lock {folder}: {error.strerror}; choose a folder on a file system that has locks"
            ) from error
        else:
            return


def _holder(descriptor: int) -> dict[str, Any]:
    """Read what the holder wrote of itself; empty where it holds the lock and has not written yet."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) and {"pid", "host"} <= holder.keys() else {}


def _busy(folder: Path, holder: str) -> UserError:
    return UserError(f"{folder} is in use by {holder}: wait for it to end, or name this run anew with run.id=NAME")
