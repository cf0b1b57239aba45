"""Files: reading with one-line errors, atomic folders, locks, and downloads."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from trilemma.atomic import atomic_write, sync_folder
from trilemma.errors import UserError

_REMEDY = "choose a writable one (data.root, data.cache_dir)"
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock `name` in `folder`, which is created: only one process at a time enters the block.

    Raises:
        UserError: If the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); {_REMEDY}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: the folder is read-only; {_REMEDY}")
    with FileLock(folder / f".{name}.lock"):
        yield


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Create a temporary folder beside `target`; when the block succeeds, it is flushed and renamed to `target`.

    The folder holds files only, and `target` does not exist.
    """
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial"))
    try:
        yield partial
        for path in partial.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(partial)
        partial.chmod(0o755)
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_bytes(path: Path) -> bytes:
    """Read the content of a file.

    Raises:
        UserError: If it is missing or unreadable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix that, or set data.root=DIR") from None


def read_lines(path: Path) -> list[str]:
    r"""Read the lines of a text file from outside: UTF-8, with or without a byte order mark, ended by \n or \r\n and nothing else.

    Unicode has more characters that Python takes for line ends (U+2028, U+0085, a form feed); in JSON they may stand inside a line.

    Raises:
        UserError: If it is missing, unreadable or not UTF-8.
    """
    content = read_bytes(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {number}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file in UTF-8"
        ) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines[-1] == "" else lines


def read_unzipped(path: Path) -> bytes:
    """Read the content of a file, decompressed if its name ends in .gz.

    Raises:
        UserError: If the file is missing, unreadable, truncated or no gzip file.
    """
    content = read_bytes(path)
    return gunzip(content, path) if path.suffix == ".gz" else content


def gunzip(content: bytes, path: Path) -> bytes:
    """Decompress the content of the file `path`.

    Raises:
        UserError: If it is truncated or no gzip file.
    """
    try:
        return gzip.decompress(content)
    except EOFError:
        raise UserError(f"{path}: the gzip file is truncated; delete it and fetch it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise UserError(f"{path}: not a valid gzip file; delete it and fetch it again") from None


def md5(content: bytes) -> str:
    """Compute the MD5 in hex, which the official sources publish. It detects damage, not malice."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def download(urls: Sequence[str], target: Path, *, verify: Callable[[bytes], object]) -> None:
    """Fetch a file from the first mirror that delivers it with the right checksum.

    Args:
        urls: Mirrors of one file, http or https.
        target: Where it goes, whole or not at all.
        verify: Raises UserError if the content is not what it should be.

    Raises:
        UserError: If no mirror gives the file (the message has the last reason), or it cannot be written.
    """
    reason: object = None
    for url in urls:
        try:
            content = _fetch(url)
            verify(content)
        except HTTPError as error:
            error.close()  # the error is the response too, and holds a socket
            reason = error
        except (OSError, HTTPException, UserError) as error:
            reason = error
        else:
            with atomic_write(target) as file:
                file.write(content)
            return
    raise UserError(f"cannot download {' or '.join(urls)} ({reason}); put the file at {target}, or set data.root=DIR")


def _fetch(url: str) -> bytes:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    request = Request(url, headers={"User-Agent": "trilemma"})
    content = bytearray()
    with urlopen(request, timeout=_TIMEOUT_SECONDS) as response, Progress(*columns, transient=True) as progress:
        length = response.headers.get("Content-Length")
        task = progress.add_task(url.rsplit("/", 1)[-1], total=None if length is None else int(length))
        while chunk := response.read(_CHUNK_BYTES):
            content += chunk
            progress.advance(task, len(chunk))
    return bytes(content)
