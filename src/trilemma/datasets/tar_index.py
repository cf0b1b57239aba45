"""An index of the samples in tar shards, built once and cached.

The layout is that of the webdataset library: members that follow each other and share their name up to its first dot are one
sample, what comes after that dot is the part's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from rich import get_console
from rich.progress import track

from trilemma.data.files import atomic_folder, locked
from trilemma.errors import UserError

IMAGES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
_MAX_CLASSES = 1_000_000
_FORMAT = 1  # of the cache; raised when the index changes
_INDEX, _CAPTIONS = "index.npz", "captions.json"
_KNOWN = ("cls", "txt", "text", "json")
_NUM_HASHED = 16  # images of a shard whose content goes into its digest
_META = re.compile(r"__[^/]*__($|/)")  # members with metadata of the shard, by the library's convention
_BLOCK = 512


@dataclass(frozen=True)
class TarIndex:
    """Locations of the images in a list of shards, in order.

    Attributes:
        paths: The shards.
        shard: Which one each image is in, int64 [N].
        offset: Where its bytes begin, int64 [N].
        size: How many there are, int64 [N].
        labels: int64 [N], or None.
        captions: N strings, or None.
        digest: Content hash: of the names and sizes of all members, of labels and captions, and of some images of each shard.
    """

    paths: list[Path]
    shard: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None
    captions: list[str] | None
    digest: str

    def __len__(self) -> int:
        return len(self.shard)


@dataclass
class _Found:
    """The samples found in one shard."""

    offsets: list[int]
    sizes: list[int]
    labels: list[int]
    captions: list[str]
    digest: str


def shard_paths(pattern: str, root: Path, key: str) -> list[Path]:
    """Find the shards of a pattern with braces, as in train-{000..099}.tar, or with * and ?, below `root`.

    Raises:
        UserError: If it names none, one that does not exist, or something that is no file.
    """
    expand = _library("shardlists").expand_urls
    paths: list[Path] = []
    for name in expand(pattern):
        if name.startswith("pipe:") or "://" in name:
            raise UserError(
                f"{key}={pattern}: shards are read at any place of theirs, so they must be files; fetch them first"
            )
        if any(c in name for c in "*?["):
            try:
                paths += sorted(root.glob(name)) if not Path(name).is_absolute() else sorted(Path("/").glob(name[1:]))
            except (ValueError, NotImplementedError) as error:  # as of ** that is not a folder's whole name
                raise UserError(f"{key}={pattern}: {error}; write * for any letters of one name") from None
        else:
            paths.append(root / Path(name).expanduser())
    if not paths:
        raise UserError(f"{key}={pattern}: no such shards below {root}")
    if len(set(paths)) < len(paths):
        raise UserError(f"{key}={pattern} names a shard twice")
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such shard; fix {key} (or data.root), or fetch it")
    return paths


def indexed(paths: Sequence[Path], *, cache_dir: Path) -> TarIndex:
    """Index some shards the first time, and read the index from the cache from then on.

    The cache is keyed by the shards' paths, sizes and modification times; processes that ask at the same time make it once.

    Raises:
        UserError: If a shard is damaged, a sample is not as it should be, or the cache is damaged or cannot be written.
    """
    stats = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path in paths for stat in (path.stat(),)]
    folder = cache_dir / hashlib.sha256(json.dumps([_FORMAT, stats]).encode()).hexdigest()[:24]
    if not folder.is_dir():
        with locked(cache_dir, folder.name):
            if not folder.is_dir():
                with atomic_folder(folder) as partial:
                    _write(paths, partial)
    try:
        with np.load(folder / _INDEX, allow_pickle=False) as arrays:
            found = dict(arrays)
        captions = json.loads((folder / _CAPTIONS).read_text())
        labels = found["labels"] if len(found["labels"]) else None
        shard, offset, size = (found[name] for name in ("shard", "offset", "size"))
        return TarIndex(list(paths), shard, offset, size, labels, captions, str(found["digest"]))
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise UserError(f"{folder}: the index of the shards is damaged ({error}); delete the folder") from None


def _write(paths: Sequence[Path], folder: Path) -> None:
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            reading = pool.map(_read_shard, paths)
            quiet = not get_console().is_terminal
            found = list(track(reading, "indexing shards", len(paths), transient=True, disable=quiet))
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    labels = [label for part in found for label in part.labels]
    captions = [caption for part in found for caption in part.captions]
    _all_or_none("class (cls, or label in json)", paths, found, [len(part.labels) for part in found])
    _all_or_none("caption (txt, or text in json)", paths, found, [len(part.captions) for part in found])
    digest = hashlib.sha256("\n".join(part.digest for part in found).encode()).hexdigest()
    np.savez(
        folder / _INDEX,
        shard=np.repeat(np.arange(len(paths)), [len(part.offsets) for part in found]),
        offset=np.array([o for part in found for o in part.offsets], np.int64),
        size=np.array([s for part in found for s in part.sizes], np.int64),
        labels=np.array(labels, np.int64),
        digest=np.array(digest),
    )
    (folder / _CAPTIONS).write_text(json.dumps(captions or None, ensure_ascii=False))


def _all_or_none(what: str, paths: Sequence[Path], found: Sequence[_Found], nums: Sequence[int]) -> None:
    """Refuse a list of shards in which only some samples have a part."""
    if not any(nums):
        return
    for path, part, num in zip(paths, found, nums, strict=True):
        if num < len(part.offsets):
            raise UserError(f"{path}: a sample has no {what}, and others have one; give it to all or to none")


def _read_shard(path: Path) -> _Found:
    """Read the headers of a shard, the small parts of its samples, and a few of its images."""
    try:
        with path.open("rb") as file:
            samples = list(_samples(path, file))
            if not samples:
                raise UserError(f"{path}: no samples; remove it from the list, or write it again")
            return _understand(path, file, samples)
    except tarfile.ReadError as error:
        raise UserError(f"{path}: not a whole tar file ({error}); fetch or write it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _samples(path: Path, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a shard: extensions of their parts to (offset, size)."""
    group = _library("tariterators").group_by_keys
    try:
        yield from group(_members(path, file))
    except ValueError as error:  # from the library: a duplicate name
        raise UserError(f"{path}: {str(error.args[0])[:200]}; write it again") from None


def _members(path: Path, file: IO[bytes]) -> Iterator[dict[str, Any]]:
    end = 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            if member.islnk() or member.issym() or member.issparse():
                kind = "a sparse file" if member.issparse() else "a link"
                raise UserError(
                    f"{path}, member {member.name[:100]}: {kind}, which is not read at any place; write the shard with the content of its "
                    "files (tar --dereference --hard-dereference)"
                )
            if member.isreg() and not _META.match(member.name):
                yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": str(path)}
            archive.members = []  # type: ignore[attr-defined]  # it would keep them all
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):  # every tar file ends with zeros
        raise tarfile.ReadError("its end is missing")


def member_at(path: Path, offset: int) -> str:
    """Find the name of the member whose content begins at a byte of a shard."""
    try:
        with tarfile.open(path, mode="r:") as archive:
            return next((member.name for member in archive if member.offset_data == offset), f"at byte {offset}")
    except (OSError, tarfile.TarError):
        return f"at byte {offset}"


def _understand(path: Path, file: IO[bytes], samples: list[dict[str, Any]]) -> _Found:
    found = _Found([], [], [], [], "")
    digest = hashlib.sha256()
    step = max(1, len(samples) // _NUM_HASHED)
    for number, sample in enumerate(samples):
        name = f"{path}, sample {sample['__key__']}"
        images = [part for part in IMAGES if part in sample]
        if len(images) != 1:
            has = ", ".join(part for part in sample if not part.startswith("__"))
            raise UserError(f"{name}: {len(images)} images ({', '.join(IMAGES)}), and one is expected; it has {has}")
        offset, size = sample[images[0]]
        digest.update(repr((sample["__key__"], images[0], size)).encode())
        if number % step == 0:
            file.seek(offset)
            digest.update(file.read(size))
        found.offsets.append(offset)
        found.sizes.append(size)
        known = {part: _decode(name, part, file, sample[part], digest) for part in _KNOWN if part in sample}
        described = known.get("json")
        if not isinstance(described, dict):
            described = {}
        label = known.get("cls", described.get("label"))
        caption = known.get("txt", known.get("text", described.get("text", described.get("caption"))))
        if label is not None:
            if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < _MAX_CLASSES:
                shown = repr(label)[:30]
                raise UserError(
                    f"{name}: its class is {shown}, and a whole number from 0 to {_MAX_CLASSES - 1} is expected"
                )
            found.labels.append(label)
        if caption is not None:
            found.captions.append(str(caption))
    found.digest = digest.hexdigest()
    return found


def _decode(name: str, part: str, file: IO[bytes], place: tuple[int, int], digest: Any) -> Any:
    offset, size = place
    file.seek(offset)
    content = file.read(size)
    digest.update(part.encode() + content)
    try:
        return _library("autodecode").basichandlers(part, content)
    except ValueError as error:  # JSON and Unicode errors are among them
        raise UserError(f"{name}: its {part} cannot be read ({error}); write it again") from None


def _library(part: str) -> Any:
    """Import a module of webdataset."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return import_module(f"webdataset.{part}")
    except ImportError:
        raise UserError("tar shards need the package webdataset: pip install -e '.[webdataset]'") from None
