"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32 x 32."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.data.files import atomic_folder, download, locked
from trilemma.data.split import balanced_order
from trilemma.datasets.cifar10_files import ARCHIVES, Records, find_folder, read_archive, read_folder, verify_archive
from trilemma.errors import UserError

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_NUM_IMAGES = 50_000  # of "train" and "val" together
_FOLDER = "cifar10"
_URL = "https://www.cs.toronto.edu/~kriz/"


class CIFAR10(ImageData):
    """CIFAR-10 from its official files: "train" and "val" are cut from the 50,000, "test" is the official 10,000.

    Looked for in `root` and in `root/cifar10`: the unpacked python or binary version, then either archive, which is
    unpacked beside itself; where there is none, the python version is downloaded to `root/cifar10`. An archive is
    verified by its MD5, unpacked files by a digest of each split's records that does not depend on their order.

    Args:
        root: Where the files lie, or go.
        val_size: Images of "val"; the class proportions are those of "train".
        captions: Give each image a caption, "a photo of a tabby cat", from the noun in its official file name. The
            python version has these; the binary one only with a file `names.txt` beside it: one name a line, those of
            data_batch_1 ... 5 and test_batch in order.
        download: Fetch missing files; False makes missing files an error.
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        split_seed: Of the choice of "val".
        flip: Mirror training images.
        max_val_images: Validate on so many images.
        num_workers: Processes that make batches ahead.

    Raises:
        UserError: If a file is missing, damaged or foreign, or an argument is out of range.
    """

    name = "cifar10"

    def __init__(
        self,
        *,
        root: str | Path,
        val_size: int = 5000,
        captions: bool = False,
        download: bool = True,
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
        if not 1 <= val_size < _NUM_IMAGES:
            raise UserError(f"data.val_size={val_size} must lie between 1 and 49999")
        self.root = Path(root).expanduser()
        self.val_size = val_size
        self.captions = captions
        self.download = download

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData:
        """See `ImageData`; the official files are always the same."""
        num_train_images = _NUM_IMAGES - options["val_size"]
        return DeclaredData(image_shape=(3, 32, 32), num_labels=len(_CLASSES), num_train_images=num_train_images)

    def read(self) -> tuple[dict[SplitName, Split], list[str]]:
        """Read and verify the files."""
        folder = find_folder(self._places())
        if folder is None:
            folder = self._unpack(self._archive())
        records = read_folder(folder)
        train, test = self._split(records["train"], folder), self._split(records["test"], folder)
        assert train.labels is not None
        order = balanced_order(len(train), seed=self.split_seed, labels=train.labels.numpy())
        splits: dict[SplitName, Split] = {
            "train": train.take(order[self.val_size :]),
            "val": train.take(order[: self.val_size]),
            "test": test,
        }
        return splits, list(_CLASSES)

    def _places(self) -> tuple[Path, Path]:
        return self.root, self.root / _FOLDER

    def _archive(self) -> Path:
        for place in self._places():
            for name in ARCHIVES:
                if (place / name).is_file():
                    return place / name
        name = next(iter(ARCHIVES))
        if not self.download:
            raise UserError(
                f"{self.root}: no CIFAR-10 (cifar-10-batches-py, cifar-10-batches-bin or {name});"
                " set data.root to its folder, or data.download=true"
            )
        target = self.root / _FOLDER / name
        with locked(target.parent, self.name):
            if not target.is_file():
                download([_URL + name], target, verify=lambda content: verify_archive(content, target))
        return target

    def _unpack(self, archive: Path) -> Path:
        with locked(archive.parent, self.name):
            folder = find_folder([archive.parent])
            if folder is None:  # another process may have fetched it meanwhile
                files = read_archive(archive)
                folder = archive.parent / ARCHIVES[archive.name].folder
                if folder.exists():
                    raise UserError(f"{folder}: files are missing; delete the folder, it is unpacked again")
                with atomic_folder(folder) as partial:
                    for name, content in files.items():
                        (partial / name).write_bytes(content)
        return folder

    def _split(self, records: Records, folder: Path) -> Split:
        captions = None
        if self.captions:
            if records.names is None:
                raise UserError(f"{folder}: no image names for data.captions=true; use the python version of CIFAR-10")
            captions = [caption(name) for name in records.names]
        return Split(
            images=torch.from_numpy(records.rows[:, 1:].reshape(-1, 3, 32, 32)),
            labels=torch.from_numpy(records.rows[:, 0].astype(np.int64)),
            captions=captions,
            index=torch.arange(len(records.rows)),
        )


def caption(name: str) -> str:
    """Build a caption from an official file name: "tabby_cat_s_000123.png" is "a photo of a tabby cat"."""
    noun = re.sub(r"_s_\d+(\.png)?$", "", name).replace("_", " ")
    return f"a photo of {'an' if noun[:1] in tuple('aeiou') else 'a'} {noun}"
