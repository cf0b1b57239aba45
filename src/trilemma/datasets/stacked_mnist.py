"""Stacked MNIST (Metz et al. 2017, arXiv:1611.02163): three digits as the colours of one image, a thousand known modes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.datasets.mnist import MNIST
from trilemma.errors import UserError

NUM_DIGITS, NUM_CHANNELS = 10, 3


class StackedMNIST(ImageData):
    """Digits a, b, c as red, green and blue, with the label 100a + 10b + c: for counting the modes that a model drops.

    Each split stacks digits of the same split of MNIST alone, each channel drawn uniformly, independently and with
    replacement from `split_seed`. The images are stacked once and held in memory, 2,352 bytes each.

    Args:
        root: Where MNIST's files lie, or go; see `MNIST`.
        train_size: Images of "train".
        val_size: Images of "val".
        test_size: Images of "test". The default is the number of samples over which modes are usually counted, so that
            real images can stand beside them.
        digits_val_size: MNIST images that are kept from "train" for "val".
        download: Fetch missing files; False makes a missing file an error.
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        split_seed: Of the choice of MNIST's "val", and of the stacks.
        flip: Mirror training images.
        max_val_images: Validate on so many images.
        num_workers: Processes that make batches ahead.

    Raises:
        UserError: If a file is missing, damaged or foreign, or an argument is out of range.
    """

    name = "stacked_mnist"

    def __init__(
        self,
        *,
        root: str | Path,
        train_size: int = 60_000,
        val_size: int = 5000,
        test_size: int = 26_000,
        digits_val_size: int = 5000,
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
        self.sizes: dict[SplitName, int] = {"train": train_size, "val": val_size, "test": test_size}
        for name, size in self.sizes.items():
            if size < 1:
                raise UserError(f"data.{name}_size={size} must be at least 1")
        if not 1 <= digits_val_size < 60_000:
            raise UserError(f"data.digits_val_size={digits_val_size} must lie between 1 and 59999")
        self.digits = MNIST(root=root, val_size=digits_val_size, download=download, split_seed=split_seed)

    @property
    def extractor_name(self) -> str:
        """A channel is measured as a digit of MNIST."""
        return MNIST.name

    @property
    def channels_are_images(self) -> bool:
        """Three digits."""
        return True

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData:
        """See `ImageData`; the requested number of stacks of MNIST's digits."""
        return DeclaredData(
            image_shape=(NUM_CHANNELS, 28, 28),
            num_labels=NUM_DIGITS**NUM_CHANNELS,
            num_train_images=options["train_size"],
        )

    def read(self) -> tuple[dict[SplitName, Split], list[str]]:
        """Read MNIST and stack it."""
        digits, _ = self.digits.read()
        stacked: dict[SplitName, Split] = {}
        for number, (name, size) in enumerate(self.sizes.items()):
            # One random stream a split: its size does not affect the other splits.
            rng = np.random.default_rng([self.split_seed, number])
            # Drawn row by row: a longer split begins with the images of a shorter one.
            chosen = rng.integers(len(digits[name]), size=(size, NUM_CHANNELS))
            stacked[name] = _stack(digits[name], torch.from_numpy(chosen))
        return stacked, [f"{label:03d}" for label in range(NUM_DIGITS**NUM_CHANNELS)]


def _stack(digits: Split, chosen: Tensor) -> Split:
    """Stack the digits at positions [N, 3] to images uint8 [N, 3, H, W]."""
    assert isinstance(digits.images, Tensor)
    assert digits.labels is not None
    hundreds, tens, units = digits.labels[chosen].unbind(1)
    return Split(
        images=digits.images[:, 0][chosen],
        labels=100 * hundreds + 10 * tens + units,
        captions=None,
        index=torch.arange(len(chosen)),
    )
