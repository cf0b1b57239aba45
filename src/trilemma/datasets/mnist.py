"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017): 60,000 + 10,000 grey images of 28 x 28."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.data.binarize import Binarize, num_levels
from trilemma.data.files import download, gunzip, locked, md5, read_unzipped
from trilemma.data.split import balanced_order
from trilemma.datasets.idx import parse_idx
from trilemma.errors import UserError

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
_NUM_IMAGES = 60_000  # of "train" and "val" together


class MNIST(ImageData):
    """MNIST from its official files: "train" and "val" are cut from the 60,000, "test" is the official 10,000.

    The files, compressed or not, are looked for in `root`, then in the sub-folders `mnist` and `MNIST/raw`; those found
    nowhere are downloaded to `root/mnist`. All are verified by the MD5 of their decompressed content.

    Args:
        root: Where the files lie, or go.
        val_size: Images of "val"; the class proportions are those of "train".
        download: Fetch missing files; False makes a missing file an error.
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        split_seed: Of the choice of "val".
        flip: Mirror training images.
        max_val_images: Validate on so many images.
        num_workers: Processes that make batches ahead.
        binarize: Threshold the images, or draw them from their grey values: "threshold", "dynamic".

    Raises:
        UserError: If a file is missing, damaged or foreign, or an argument is out of range.
    """

    name = "mnist"
    folders: ClassVar[tuple[str, ...]] = ("mnist", "MNIST/raw")
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    )
    class_names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    # MD5 of the decompressed files: a re-packed copy passes.
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    def __init__(
        self,
        *,
        root: str | Path,
        val_size: int = 5000,
        download: bool = True,
        batch_size: int = 64,
        seed: int = 0,
        split_seed: int = 0,
        flip: bool = False,
        max_val_images: int | None = None,
        num_workers: int = 0,
        binarize: Binarize | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            seed=seed,
            split_seed=split_seed,
            flip=flip,
            max_val_images=max_val_images,
            num_workers=num_workers,
            binarize=binarize,
        )
        if not 1 <= val_size < _NUM_IMAGES:
            raise UserError(f"data.val_size={val_size} must lie between 1 and 59999")
        self.root = Path(root).expanduser()
        self.val_size = val_size
        self.download = download

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData:
        """See `ImageData`; the official files are always the same."""
        num_labels = len(cls.class_names)
        return DeclaredData(
            image_shape=(1, 28, 28),
            num_labels=num_labels,
            num_train_images=_NUM_IMAGES - options["val_size"],
            num_levels=num_levels(options.get("binarize")),
        )

    def read(self) -> tuple[dict[SplitName, Split], list[str]]:
        """Read and verify the four files."""
        folder = self._find()
        if folder is None:
            folder = self._fetch()
        train, test = self._part(folder, "train"), self._part(folder, "t10k")
        assert train.labels is not None
        order = balanced_order(len(train), seed=self.split_seed, labels=train.labels.numpy())
        splits: dict[SplitName, Split] = {
            "train": train.take(order[self.val_size :]),
            "val": train.take(order[: self.val_size]),
            "test": test,
        }
        return splits, list(self.class_names)

    @classmethod
    def search_path(cls, root: Path) -> list[Path]:
        """List the folders that may hold the files, in the order they are tried."""
        return [root, *(root / folder for folder in cls.folders)]

    def _find(self) -> Path | None:
        for folder in self.search_path(self.root):
            if all(_locate(folder, name) is not None for name in self.checksums):
                return folder
        return None

    def _fetch(self) -> Path:
        target = self.root / self.folders[0]
        if not self.download:
            raise UserError(
                f"{self.root}: no {type(self).name} files ({next(iter(self.checksums))}[.gz], ...);"
                " set data.root to their folder, or data.download=true"
            )
        with locked(target, type(self).name):
            for name in self.checksums:
                if _locate(target, name) is None:
                    file = f"{name}.gz"
                    download(
                        [mirror + file for mirror in self.mirrors],
                        target / file,
                        verify=partial(self._verify_download, path=target / file, name=name),
                    )
        return target

    def _part(self, folder: Path, prefix: str) -> Split:
        arrays = []
        for suffix, ndim in ((_IMAGES, 3), (_LABELS, 1)):
            name = f"{prefix}-{suffix}"
            path = _locate(folder, name)
            assert path is not None
            content = read_unzipped(path)
            arrays.append(parse_idx(content, path, ndim=ndim))
            self._verify(content, path, name)
        images, labels = arrays
        return Split(
            images=torch.from_numpy(images[:, None].copy()),
            labels=torch.from_numpy(labels.astype(np.int64)),
            captions=None,
            index=torch.arange(len(labels)),
        )

    def _verify_download(self, content: bytes, path: Path, name: str) -> None:
        self._verify(gunzip(content, path), path, name)

    def _verify(self, content: bytes, path: Path, name: str) -> None:
        found = md5(content)
        if found != self.checksums[name]:
            raise UserError(
                f"{path}: not the official {type(self).name} file (MD5 of its content {found}, expected"
                f" {self.checksums[name]}); delete it and fetch it again, or set data.root=DIR"
            )


class FashionMNIST(MNIST):
    """Fashion-MNIST, as `MNIST`; the files of Debian's package dataset-fashion-mnist are found too."""

    name = "fashion_mnist"
    folders = ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw")
    mirrors = (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    )
    class_names = (
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    )
    checksums: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }
    debian: ClassVar[Path] = Path("/usr/share/datasets/fashion-mnist")

    @classmethod
    def search_path(cls, root: Path) -> list[Path]:
        """List the folders of `MNIST`, then Debian's."""
        return [*super().search_path(root), cls.debian]


def _locate(folder: Path, name: str) -> Path | None:
    """Find the file `name` or its gzip in a folder; some distributions write a dot before "idx"."""
    for candidate in (name, f"{name}.gz", name.replace("-idx", ".idx"), f"{name.replace('-idx', '.idx')}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None
