"""Images in tar shards in webdataset's format: large files, which parallel file systems read fast."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.data.decode import Decoding, check_decoding, decode
from trilemma.data.files import read_lines
from trilemma.data.split import Index, StoredImages, balanced_order, check_fractions
from trilemma.datasets.tar_index import TarIndex, indexed, member_at, shard_paths
from trilemma.errors import UserError

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class WebDataset(ImageData):
    """Images in tar shards, with `cls` (a class number) and `txt` (a caption), or both in `json`, beside each where there are any.

    An index of the shards is made once; from then on each image is read where it lies, so that batch n is the same for any number of ranks
    and workers, and a run resumes in mid-epoch. An epoch takes the shards in random order and shuffles the images of `window` of
    them at a time. Images are decoded when they are read: give it workers.

    Args:
        shards: Training shards, "train-{000..099}.tar" or "train-*.tar", below `root`.
        val_shards: Validation shards; None cuts "val" from the training shards.
        test_shards: Test shards; None cuts "test" from the training shards.
        root: Where shards are looked for.
        cache_dir: Where the index goes.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: "crop" takes the largest central square, "stretch" the whole image.
        window: Shards whose images are shuffled together.
        val_fraction: Share of the training shards' images that goes to "val" where it has no shards; at least one image.
        test_fraction: Share that goes to "test" likewise.
        label_names: A file with the name of class 0, 1, ... on each line; None names them by number.
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        split_seed: Of the choice of the splits.
        flip: Mirror training images.
        max_val_images: Validate on so many images.
        num_workers: Processes that read and decode batches ahead.

    Raises:
        UserError: If webdataset is not installed, a shard is missing or damaged, a sample is not as it should be, or an argument is out
            of range.
    """

    name = "webdataset"

    def __init__(
        self,
        *,
        shards: str,
        val_shards: str | None = None,
        test_shards: str | None = None,
        root: str | Path = ".",
        cache_dir: str | Path,
        size: int,
        channels: int = 3,
        resize: Literal["crop", "stretch"] = "crop",
        window: int = 16,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        label_names: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        split_seed: int = 0,
        flip: bool = False,
        max_val_images: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            split_seed=split_seed,
            flip=flip,
            max_val_images=max_val_images,
            num_workers=num_workers,
        )
        if window < 1:
            raise UserError(f"data.window={window} must be at least 1")
        check_fractions(val_fraction, test_fraction)
        self.patterns = {"train": shards, "val": val_shards, "test": test_shards}
        self.root = Path(root).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()
        self.decoding = check_decoding(size, channels, resize)
        self.window = window
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.label_file = label_names

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData:
        """See `ImageData`; images have one size, and only the files tell their number and classes."""
        return DeclaredData(image_shape=(options["channels"], options["size"], options["size"]))

    def read(self) -> tuple[dict[SplitName, Split], list[str] | None]:
        """Index the shards; images are not read."""
        indices = {name: self._index(name) for name in _SPLITS if self.patterns[name] is not None}
        rows = self._rows(indices)
        splits: dict[SplitName, Split] = {}
        for name in _SPLITS:
            index = indices.get(name, indices["train"])
            splits[name] = _split(index, rows[name], self.decoding)
        labelled = {name for name, split in splits.items() if split.labels is not None}
        if labelled and labelled != set(_SPLITS):
            missing = next(name for name in _SPLITS if name not in labelled)
            raise UserError(f"the {missing} shards have no classes, and others have: give them to all or to none")
        return splits, self._names(splits) if labelled else None

    def _index(self, name: SplitName) -> TarIndex:
        key = "data.shards" if name == "train" else f"data.{name}_shards"
        pattern = self.patterns[name]
        assert pattern is not None
        return indexed(shard_paths(pattern, self.root, key), cache_dir=self.cache_dir)

    def _rows(self, indices: dict[SplitName, TarIndex]) -> dict[SplitName, npt.NDArray[np.int64]]:
        """Assign images of the index to splits, int64 [N]; those of "train" in their order on disk."""
        num = len(indices["train"])
        rows = {name: np.arange(len(index)) for name, index in indices.items()}
        cut = [name for name in _SPLITS if name not in indices]
        sizes = {name: max(1, round(self.fractions[name] * num)) for name in cut}
        if num < sum(sizes.values()) + 1:
            raise UserError(f"data.shards={self.patterns['train']}: {num} images are too few for the splits; add some")
        order = balanced_order(num, seed=self.split_seed, labels=indices["train"].labels)
        for name in cut:
            rows[name], order = np.split(order, [sizes[name]])
        rows["train"] = np.sort(order)
        return rows

    def _names(self, splits: dict[SplitName, Split]) -> list[str]:
        largest = max(int(split.labels.max()) for split in splits.values() if split.labels is not None)
        if self.label_file is None:
            return [str(label) for label in range(largest + 1)]
        path = self.root / Path(self.label_file).expanduser()
        names = read_lines(path)
        if len(names) <= largest:
            raise UserError(f"data.label_names={path}: {len(names)} names, and the shards have class {largest}")
        return names


def _split(index: TarIndex, rows: npt.NDArray[np.int64], how: Decoding) -> Split:
    return Split(
        images=TarImages(index, rows, how),
        labels=None if index.labels is None else torch.from_numpy(index.labels[rows]),
        captions=None if index.captions is None else [index.captions[i] for i in rows],
        index=torch.from_numpy(rows),
    )


class TarImages(StoredImages):
    """Some images of an index, read and decoded when indexed.

    Reading moves no file position, so forks of a process may read the same open file.

    Args:
        index: Where they lie.
        rows: int64 [N], which ones and in what order.
        how: What they become.
    """

    def __init__(self, index: TarIndex, rows: npt.NDArray[np.int64], how: Decoding) -> None:
        self._index = index
        self._rows = rows
        self._how = how
        self._open: dict[int, int] = {}
        shards = index.shard[rows]
        if np.all(np.diff(shards) >= 0):
            self.bounds = np.append(np.unique(shards, return_index=True)[1], len(rows)).astype(np.int64)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._rows), self._how.channels, self._how.size, self._how.size))

    def __getitem__(self, index: Index) -> Tensor:
        """Read images uint8 [n, C, H, W] by slice or by positions int64 [n]."""
        rows = self._rows[index.numpy() if isinstance(index, Tensor) else index]
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        with warnings.catch_warnings(action="ignore"):  # Pillow warns of huge and odd files, yet reads them
            for i in np.lexsort((self._index.offset[rows], self._index.shard[rows])):
                images[i] = self._image(int(rows[i]))
        return torch.from_numpy(images)

    def digest(self) -> str:
        """Hash the content without reading the images again."""
        how = repr(self._how).encode()
        return hashlib.sha256(self._index.digest.encode() + how + self._rows.tobytes()).hexdigest()

    def _image(self, row: int) -> npt.NDArray[np.uint8]:
        shard, offset, size = (int(part[row]) for part in (self._index.shard, self._index.offset, self._index.size))
        path = self._index.paths[shard]
        try:
            content = os.pread(self._descriptor(shard, path), size, offset)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if len(content) < size:
            raise UserError(f"{path}: shorter than when it was indexed; fetch or write it again")
        try:
            return decode(io.BytesIO(content), self._how, path.name)
        except UserError as error:
            raise UserError(f"{path}, member {member_at(path, offset)}: {str(error).partition(': ')[2]}") from None

    def _descriptor(self, shard: int, path: Path) -> int:
        """Open the shard; few are kept open at a time."""
        if shard not in self._open:
            if len(self._open) >= _MAX_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[shard]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)


_MAX_OPEN = 64
