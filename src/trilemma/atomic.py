"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trilemma.errors import UserError

_PREFIX = ".tmp-"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write a file so that a reader sees the old one or the new one, never a part.

    The bytes go to a temporary name in the same folder (made where missing), are flushed to the disk and then renamed
    over `path`. On any error the temporary file is removed and `path` is as it was.

    Args:
        path: The file to write.

    Yields:
        A binary handle that can be written, read back and sought in.

    Raises:
        UserError: If the file system refuses (no space, read-only, not a folder).
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f"{_PREFIX}{target.name}.", dir=target.parent)
    except OSError as error:
        raise _refused(target, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno is None or (error.filename is not None and Path(error.filename) != temporary):
            raise  # the caller's own trouble with another file
        raise _refused(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; raises as `atomic_write` does."""
    with atomic_write(path) as handle:
        handle.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    with suppress(PermissionError):  # a folder one may write but not read cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files that a killed process left in `folder`."""
    for path in Path(folder).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            path.unlink()


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refused(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot write {path}: {reason}; free some space or choose a folder you may write to")
