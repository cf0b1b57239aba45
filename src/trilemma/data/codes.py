"""A data set's codes in a folder: memory-mapped shards, their recipe, and labels and captions of the images.

meta.json             what the codes are and whose, written first; and a table of all other files with their SHA-256, written last
train-00000.npy ...   codes [n, ...], or [n, 2, ...] of the images and of their mirror images; every shard but a split's last has as many
train-index.npy       position of each image in its source, int64 [N]
train-labels.npy      int64 [N], where the data set has labels
train-captions.json   N strings, where it has captions
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trilemma.errors import UserError

FORMAT = 1
META = "meta.json"
MAX_BYTES_IN_MEMORY = 2 * 1024**3  # smaller codes are read whole into memory
_CHUNK_BYTES = 1 << 24


class StoredCodes:
    """Memory-mapped codes of a split, indexed like the tensor [N, ...], or [2, N, ...] with mirror images, that they hold.

    Args:
        shards: In order, [n, ...] or [n, 2, ...] each.
        flip: Whether the codes of mirror images are there.
    """

    def __init__(self, shards: list[npt.NDArray[Any]], *, flip: bool) -> None:
        self._shards = shards
        self._flip = flip
        self.bounds = np.cumsum([0, *map(len, shards)])

    @property
    def shape(self) -> torch.Size:
        """([2,] N, ...)."""
        row = self._shards[0].shape[1 + self._flip :]
        return torch.Size(((2,) if self._flip else ()) + (self.num_images, *row))

    @property
    def num_images(self) -> int:
        """N."""
        return int(self.bounds[-1])

    @property
    def dtype(self) -> torch.dtype:
        """As they are kept."""
        return torch.from_numpy(np.empty(0, self._shards[0].dtype)).dtype

    @property
    def num_bytes(self) -> int:
        """What they take in memory."""
        return sum(shard.nbytes for shard in self._shards)

    def take(self, rows: npt.NDArray[np.int64], mirrored: npt.NDArray[np.bool_] | None = None) -> Tensor:
        """Read codes [n, ...] of images at `rows` [n]; of their mirror images where `mirrored` [n] is True."""
        found = np.empty((len(rows), *self._shards[0].shape[1 + self._flip :]), self._shards[0].dtype)
        number = np.searchsorted(self.bounds, rows, side="right") - 1
        within = rows - self.bounds[number]
        version = np.zeros(len(rows), np.int64) if mirrored is None else mirrored.astype(np.int64)
        for shard in np.unique(number):
            mine = np.flatnonzero(number == shard)
            where = (within[mine], version[mine]) if self._flip else within[mine]
            found[mine] = self._shards[shard][where]
        return torch.from_numpy(found)

    def __getitem__(self, index: slice) -> Tensor:
        """Read codes [n, ...] of consecutive images, not of their mirror images."""
        return self.take(np.arange(self.num_images)[index])

    def all(self) -> Tensor:
        """Read all codes into memory."""
        whole = torch.from_numpy(np.concatenate(self._shards))
        return whole.transpose(0, 1).contiguous() if self._flip else whole

    def plain(self) -> StoredCodes:
        """Select the codes without those of mirror images."""
        return StoredCodes([shard[:, 0] for shard in self._shards], flip=False) if self._flip else self

    def rows(self) -> CodeRows:
        """Concatenate all codes, those of mirror images last."""
        return CodeRows(self)


class CodeRows:
    """Codes [N, ...] or [2N, ...], read by slices.

    Args:
        codes: What is sliced.
    """

    def __init__(self, codes: StoredCodes) -> None:
        self._codes = codes
        self._versions = codes.shape[0] if codes._flip else 1

    def __len__(self) -> int:
        return self._versions * self._codes.num_images

    def __getitem__(self, index: slice) -> Tensor:
        version, row = np.divmod(np.arange(len(self))[index], self._codes.num_images)
        return self._codes.take(row, version == 1 if self._versions == 2 else None)


@dataclass(frozen=True)
class CodeFolder:
    """A complete folder of codes.

    Attributes:
        path: Where it is.
        meta: Content of its meta.json.
    """

    path: Path
    meta: Mapping[str, Any]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have codes."""
        return list(self.meta["splits"])

    def codes(self, split: str) -> StoredCodes:
        """Open the codes of a split; they are read when indexed.

        Raises:
            UserError: If a shard is missing or is not what the table says.
        """
        entry = self.meta["splits"][split]
        row = tuple(self.meta["row_shape"])
        shards = []
        for shard in entry["shards"]:
            path = self.path / shard["file"]
            shape = (shard["size"], *((2,) if entry["flip"] else ()), *row)
            array = open_array(path, shape, self.meta["dtype"])
            if array is None:
                raise UserError(f"{path}: {_what_is_wrong(path)}; {_remedy(self.meta)}")
            shards.append(array)
        return StoredCodes(shards, flip=entry["flip"])

    def index(self, split: str) -> Tensor:
        """Read the position of each image in its source, int64 [N]."""
        return torch.from_numpy(self._small(split, "index"))

    def labels(self, split: str) -> Tensor | None:
        """Read the labels int64 [N], if there are any."""
        return torch.from_numpy(self._small(split, "labels")) if "labels" in self.meta["splits"][split] else None

    def captions(self, split: str) -> list[str] | None:
        """Read the N captions, if there are any."""
        entry = self.meta["splits"][split].get("captions")
        if entry is None:
            return None
        captions: list[str] = json.loads(self._checked(entry))
        return captions

    def digest(self, split: str) -> str:
        """Hash the codes of a split."""
        return hashlib.sha256(json.dumps(self.meta["splits"][split], sort_keys=True).encode()).hexdigest()

    def damaged(self) -> Iterator[Path]:
        """Read everything; yield the files that are missing or whose SHA-256 differs from the table's."""
        for entry in self.meta["splits"].values():
            for file in (*entry["shards"], *(entry[k] for k in ("index", "labels", "captions") if k in entry)):
                path = self.path / file["file"]
                if not path.is_file() or sha256_of(path) != file["sha256"]:
                    yield path

    def verify(self) -> None:
        """Read everything and compare it with the table.

        Raises:
            UserError: If a file is missing or damaged.
        """
        for path in self.damaged():
            raise UserError(f"{path}: {_what_is_wrong(path)}; {_remedy(self.meta)}")

    def _small(self, split: str, name: str) -> npt.NDArray[np.int64]:
        entry = self.meta["splits"][split]
        path = self.path / entry[name]["file"]
        self._checked(entry[name])
        array = open_array(path, (sum(shard["size"] for shard in entry["shards"]),), "int64")
        if array is None:
            raise UserError(f"{path}: {_what_is_wrong(path)}; {_remedy(self.meta)}")
        return np.array(array)

    def _checked(self, entry: Mapping[str, Any]) -> bytes:
        path = self.path / entry["file"]
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise UserError(f"{path}: {_what_is_wrong(path)}; {_remedy(self.meta)}")
        return content


def read_folder(path: Path) -> CodeFolder | None:
    """Open the folder of codes at `path`, or return None where it is not complete.

    Raises:
        UserError: If its meta.json is damaged or of another format.
    """
    meta = read_meta(path)
    return CodeFolder(path, meta) if meta and meta["splits"] else None


def read_meta(path: Path) -> dict[str, Any] | None:
    """Read the meta.json of a folder of codes, complete or begun; None where there is none.

    Raises:
        UserError: If it is damaged or of another format.
    """
    try:
        text = (path / META).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path / META}: cannot be read ({error.strerror})") from None
    try:
        meta: dict[str, Any] = json.loads(text)
        found = meta["format"]
        known = {"codec", "data", "dtype", "row_shape", "splits"} <= meta.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path / META}: not a description of codes; delete the folder and make it again") from None
    if found != FORMAT or not known:
        raise UserError(f"{path / META}: codes of format {found}, and this version reads {FORMAT}; make them again")
    return meta


def open_array(path: Path, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any] | None:
    """Memory-map a .npy file; None unless it is complete, of that shape and of that type."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # ValueError: a file shorter than its header
        return None
    return array if array.shape == shape and array.dtype == np.dtype(dtype) else None


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _what_is_wrong(path: Path) -> str:
    return "damaged: it is not what was written" if path.is_file() else "missing"


def _remedy(meta: Mapping[str, Any]) -> str:
    return (
        "python -m trilemma.tokenize with the same codec, data and output_dir makes it again "
        f"(codec {meta['codec']['hash']}, data {meta['data']['name']})"
    )
