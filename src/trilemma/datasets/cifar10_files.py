"""The two official file formats of CIFAR-10, and their verification."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trilemma.data.files import md5, read_bytes
from trilemma.errors import UserError

_IMAGE_BYTES = 3 * 32 * 32
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_NAMES = "names.txt"


@dataclass(frozen=True)
class Archive:
    """An official archive: its MD5, the folder inside, and the suffix of the batch files."""

    md5: str
    folder: str
    suffix: str


# The Python version first: it has the names of the images.
ARCHIVES = {
    "cifar-10-python.tar.gz": Archive("c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py", ""),
    "cifar-10-binary.tar.gz": Archive("c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin", ".bin"),
}


@dataclass(frozen=True)
class Records:
    """Images of one split.

    Attributes:
        rows: uint8 [N, 3073]: label, then the red, green and blue planes.
        names: N official file names, or None.
    """

    rows: npt.NDArray[np.uint8]
    names: list[str] | None


def digest(rows: npt.NDArray[np.uint8]) -> str:
    """Compute the sum of the records' sha256 modulo 2^256, in hex: the same in any order, another if a record changes."""
    total = sum(int.from_bytes(hashlib.sha256(row.data).digest(), "big") for row in rows)
    return f"{total % 2**256:064x}"


# Computed from the official images by `digest`.
_DIGESTS = {
    "train": "d17523651dcffdf1be45e6671e5077f61b15cbf5376a64e556c870e6fb6066d3",
    "test": "ab21d127e2bbf4b95f1588dcadf3c8502b8fedb328dd5315bc7fa51b5ab965c0",
}


def find_folder(places: Sequence[Path]) -> Path | None:
    """Find the first complete unpacked version in, or directly below, one of the folders."""
    for place in places:
        for archive in ARCHIVES.values():
            for folder in (place / archive.folder, place):
                files = (folder / (name + archive.suffix) for names in _BATCHES.values() for name in names)
                if all(file.is_file() for file in files):
                    return folder
    return None


def read_folder(folder: Path) -> dict[str, Records]:
    """Read and verify the records of both splits of an unpacked version.

    Raises:
        UserError: If a file is damaged or the records are not the official ones.
    """
    binary = (folder / "test_batch.bin").is_file()
    names = _read_names(folder / _NAMES) if binary else None
    splits = {}
    for split, batches in _BATCHES.items():
        if binary:
            rows = np.concatenate([_read_binary(folder / f"{name}.bin") for name in batches])
            records = Records(rows, None if names is None else names[split])
        else:
            parts = [_read_python(folder / name) for name in batches]
            records = Records(
                np.concatenate([part.rows for part in parts]), [name for part in parts for name in part.names or ()]
            )
        if digest(records.rows) != _DIGESTS[split]:
            files = ", ".join(batches)
            raise UserError(
                f"{folder}: damaged: the {split} records ({files}) are not the official ones; delete the folder and"
                " fetch it again"
            )
        splits[split] = records
    return splits


def verify_archive(content: bytes, path: Path) -> None:
    """Compare the content of the archive `path` with the official MD5.

    Raises:
        UserError: If they differ.
    """
    found, expected = md5(content), ARCHIVES[path.name].md5
    if found != expected:
        raise UserError(f"{path}: not the official archive (MD5 {found}, not {expected}); delete it and fetch it again")


def read_archive(path: Path) -> dict[str, bytes]:
    """Read and verify the regular files of an archive, by name.

    Raises:
        UserError: If it is not the official archive.
    """
    content = read_bytes(path)
    verify_archive(content, path)
    files = {}
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                files[Path(member.name).name] = file.read()
    return files


def _read_binary(path: Path) -> npt.NDArray[np.uint8]:
    rows = np.fromfile(path, np.uint8)
    if len(rows) == 0 or len(rows) % (1 + _IMAGE_BYTES):
        raise UserError(f"{path}: {len(rows)} bytes are no whole number of images; delete it and fetch it again")
    return rows.reshape(-1, 1 + _IMAGE_BYTES)


def _read_names(path: Path) -> dict[str, list[str]] | None:
    if not path.is_file():
        return None
    names = path.read_text().split()
    if len(names) != 60_000:
        raise UserError(f"{path}: {len(names)} names for 60000 images; delete it")
    return {"train": names[:50_000], "test": names[50_000:]}


def _read_python(path: Path) -> Records:
    try:
        with path.open("rb") as file:
            content: Mapping[Any, Any] = _Unpickler(file, encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels = batch["data"].array()
        labels = np.array(batch["labels"], dtype=np.uint8)
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in batch["filenames"]]
        rows = np.concatenate([labels[:, None], pixels], axis=1)
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: not an official CIFAR-10 batch ({reason}); delete it and fetch it again") from None
    return Records(rows, names)


class _Array:
    """Replaces numpy's array while unpickling, so that numpy runs nothing from the file."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes | str]) -> None:
        _, self._shape, _, self._fortran_order, content = state
        # Pickles written by Python 3 in an old protocol hold bytes as latin-1 text.
        self._content = content.encode("latin-1") if isinstance(content, str) else content

    def array(self) -> npt.NDArray[np.uint8]:
        """Build the uint8 array."""
        values = np.frombuffer(self._content, np.uint8)
        return values.reshape(self._shape, order="F" if self._fortran_order else "C")


class _DType:
    """Replaces numpy's dtype while unpickling; the pixels are bytes in any case."""

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Maps the few names in an official batch to harmless classes, and refuses all others."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if (module, name) == ("numpy", "dtype"):
            return lambda *_: _DType()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("_codecs", "encode"):
            return lambda text, _: text.encode("latin-1")
        raise pickle.UnpicklingError(f"it names {module}.{name}")
