"""Files that appear whole or not at all: atomic writes, a lock, and downloads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trilemma.errors import UserError

_REMEDY = "choose a writable one (data.root, data.cache_dir)"
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        UserError: If it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); {_REMEDY}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: the folder is read-only; {_REMEDY}")


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder`, which is created: only one process at a time works on what it guards."""
    make_folder(folder)
    with FileLock(folder / f".{name}.lock"):
        yield


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; when the block ends well, the file is flushed and takes its name."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    os.close(descriptor)
    partial = Path(name)
    try:
        yield partial
        flush(partial)
        partial.chmod(0o644)
        partial.replace(target)
        flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder beside `target`; when the block ends well, it is flushed and takes the name."""
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        yield partial
        for path in partial.iterdir():
            flush(path)
        partial.chmod(0o755)
        if target.exists():  # what a check found wanting: the new one replaces it
            shutil.rmtree(target)
        partial.replace(target)
        flush(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def flush(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def md5(content: bytes) -> str:
    """MD5 in hex: what the official sources publish. It tells damage, not malice."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(urls: Sequence[str], target: Path, *, verify: Callable[[Path], object]) -> None:
    """Fetch a file from the first mirror that gives a good one.

    Args:
        urls: Mirrors of one file, http or https.
        target: Where it goes; its folder exists.
        verify: Raises UserError if the file is not what it should be.

    Raises:
        UserError: If no mirror gives the file; the message names the last reason.
    """
    reason: object = None
    for url in urls:
        try:
            with atomic_file(target) as partial:
                _fetch(url, partial)
                verify(partial)
        except URLError as error:
            reason = error.reason
        except (OSError, HTTPException, UserError) as error:
            reason = error
        else:
            return
    where = ", ".join(urls)
    raise UserError(f"{target}: cannot be downloaded from {where} ({reason}); put the file there, or set data.root=DIR")


def _fetch(url: str, target: Path) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    request = Request(url, headers={"User-Agent": "trilemma"})
    with (
        urlopen(request, timeout=_TIMEOUT_SECONDS) as response,
        target.open("wb") as file,
        Progress(*columns, transient=True) as progress,
    ):
        length = response.headers.get("Content-Length")
        task = progress.add_task(url.rsplit("/", 1)[-1], total=None if length is None else int(length))
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            progress.advance(task, len(chunk))
