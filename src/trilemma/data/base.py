"""The interface of a data set: all that entry points, families and callbacks know of it."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from trilemma.data.binarize import Binarize, check_binarize, draw_split, num_levels, threshold
from trilemma.data.codes import MAX_BYTES_IN_MEMORY, StoredCodes
from trilemma.data.loader import WINDOW, BatchStream, EvalLoader, check_batch_size
from trilemma.data.split import Split, StoredImages
from trilemma.errors import UserError

__all__ = ["DeclaredData", "ImageData", "Split", "SplitName"]

SplitName = Literal["train", "val", "test"]


@dataclass(frozen=True, kw_only=True)
class DeclaredData:
    """Properties of a data set that are known before a file of it is read.

    Attributes:
        image_shape: (C, H, W).
        num_labels: Number of labels; None where there are none, or only the files tell.
        num_train_images: Images of "train"; None where only the files tell.
        num_levels: Values that a subpixel takes.
    """

    image_shape: tuple[int, int, int]
    num_labels: int | None = None
    num_train_images: int | None = None
    num_levels: int = 256


class ImageData(L.LightningDataModule, ABC):
    """A data set of images with its three splits.

    Nothing is read before it is asked for, and then once. A reader gives `read()`; the rest is common.

    Args:
        batch_size: Images in a training batch over all devices, and in a validation or test batch.
        seed: Of the order of the training batches and of mirroring.
        split_seed: Of the choice of the splits, apart from `seed` so that runs with several seeds share their splits.
        flip: Mirror training images left to right with probability 1/2.
        max_val_images: Validate on the first so many images of "val"; None takes all.
        num_workers: Processes of each rank that make training batches ahead, and as many for validation; with 0 the training
            process makes them. They change no batch. Images that would fit beside the network then stay on the host.
        binarize: "threshold", or "dynamic": each image of a training batch is drawn anew from its grey values, by the seed and the
            number of the batch, and each other image once and for all. None leaves them grey. For readers into memory.

    Attributes:
        name: Name of the data set; of one that is binarised it ends in the mode, as in "mnist_dynamic".
        window: Files whose images are shuffled together, where they are read from many (see `windowed_order`).
        num_train_batches: Length of a run in batches; where None it follows from the trainer's `max_steps` and
            `accumulate_grad_batches`. A family that counts its steps in another way sets it.

    Raises:
        UserError: If an argument is out of range, or the data set cannot be read.
    """

    name: str
    window: int = WINDOW

    def __init__(
        self,
        *,
        batch_size: int = 64,
        seed: int = 0,
        split_seed: int = 0,
        flip: bool = False,
        max_val_images: int | None = None,
        num_workers: int = 0,
        binarize: Binarize | None = None,
    ) -> None:
        super().__init__()
        if seed < 0 or split_seed < 0:
            raise UserError(f"data.seed={seed}, data.split_seed={split_seed}: a seed must be at least 0")
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} must be at least 1")
        if max_val_images is not None and max_val_images < 1:
            raise UserError(f"data.max_val_images={max_val_images} must be at least 1, or null for all")
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} must be at least 0")
        check_binarize(binarize)
        if binarize is not None:
            self.name = f"{type(self).name}_{binarize}"
        self.batch_size = batch_size
        self.seed = seed
        self.split_seed = split_seed
        self.flip = flip
        self.max_val_images = max_val_images
        self.num_workers = num_workers
        self.binarize = binarize
        self.num_train_batches: int | None = None
        self._splits: dict[SplitName, Split] | None = None
        self._drawn_train: Split | None = None
        self._label_names: list[str] | None = None
        self._fingerprint: str | None = None
        self._codes: dict[SplitName, Tensor | StoredCodes] = {}

    @property
    def extractor_name(self) -> str:
        """Data set whose feature extractor measures samples of this one: itself, unless it is a part of another."""
        return type(self).name

    @property
    def num_levels(self) -> int:
        """Values that a subpixel takes: 2 where the images are binarised, else 256."""
        return num_levels(self.binarize)

    @property
    def channels_are_images(self) -> bool:
        """Whether each channel shows an image of its own, of the data set that `extractor_name` names."""
        return False

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData | None:
        """Declare the properties of the data set without reading a file; None for a reader that declares none.

        Args:
            options: All arguments of the constructor by name, those left to their defaults among them.
        """
        return None

    @abstractmethod
    def read(self) -> tuple[dict[SplitName, Split], list[str] | None]:
        """Read the splits "train", "val" and "test", and the names of the labels (None without labels)."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data set, unless that was done; every process may call it at once."""
        if self._splits is None:
            splits, self._label_names = self.read()
            check_batch_size(self.batch_size, len(splits["train"]), 1)
            self._splits = {name: self._binarised(split, name) for name, split in splits.items()}

    def _binarised(self, split: Split, name: SplitName) -> Split:
        """As it is kept: with `binarize="dynamic"` the training images are, as they were read."""
        if self.binarize == "threshold":
            assert isinstance(split.images, Tensor)
            return replace(split, images=threshold(split.images))
        return draw_split(split, name) if self.binarize == "dynamic" and name != "train" else split

    def split(self, name: SplitName) -> Split:
        """Get one of the splits; the training images of `binarize="dynamic"` as one draw of them, which no batch is."""
        if self.binarize != "dynamic" or name != "train":
            return self._read()[name]
        if self._drawn_train is None:
            self._drawn_train = draw_split(self._read()[name], name)
        return self._drawn_train

    @property
    def num_train_images(self) -> int:
        """Number of training images."""
        return len(self._read()["train"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self._read()["train"].images.shape
        return channels, height, width

    @property
    def label_names(self) -> list[str] | None:
        """Names of labels 0, 1, ...; None without labels."""
        self.setup()
        return self._label_names

    @property
    def num_labels(self) -> int | None:
        """Number of labels; None without labels."""
        return None if self.label_names is None else len(self.label_names)

    @property
    def fingerprint(self) -> str:
        """sha256 of the content of all splits."""
        if self._fingerprint is None:
            digests = (f"{name} {split.digest()}" for name, split in sorted(self._read().items()))
            self._fingerprint = hashlib.sha256("\n".join(digests).encode()).hexdigest()
        return self._fingerprint

    def split_record(self) -> dict[str, Any]:
        """Describe how the splits were made, in plain containers, for the run directory."""
        return {
            "name": self.name,
            "split_seed": self.split_seed,
            "fingerprint": self.fingerprint,
            "splits": {
                name: {"size": len(split), "sha256": split.digest(), "index_sha256": _index_digest(split.index)}
                for name, split in self._read().items()
            },
        }

    def use_codes(self, codes: Mapping[SplitName, Tensor | StoredCodes]) -> None:
        """Serve what a codec caches: "train" batches carry "code" in place of "image", "val" batches both.

        Args:
            codes: By split, "train" and "val" and perhaps "test", in its order: tokens, non-negative integers [N, L], or what
                continuous codes are made of, float [N, c, h, w]. With `flip`, "train" is [2, N, ...]: those of the images, then
                those of their mirror images. What is stored and small enough is read into memory.

        Raises:
            ValueError: If a split is missing or a shape does not match it.
        """
        names: tuple[SplitName, ...] = ("train", "val", "test") if "test" in codes else ("train", "val")
        for name in names:
            expected = (2,) * (self.flip and name == "train") + (len(self._read()[name]),)
            found = tuple(codes[name].shape) if name in codes else ()
            if found[: len(expected)] != expected or len(found) == len(expected):
                raise ValueError(f"codes of {name!r} must be shaped {(*expected, '...')}, got {found or None}")
        self._codes = {name: _kept(part) for name, part in codes.items()}

    def train_dataloader(self) -> BatchStream:
        """Build the loader of training batches of the whole run."""
        split, codes = self._read()["train"], self._codes.get("train")
        rank, world_size = self._rank()
        return BatchStream(
            split,
            batch_size=self.batch_size,
            num_batches=self._num_batches(),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            flip=self.flip,
            codes=codes,
            device=None if self.trainer is None else self.trainer.strategy.root_device,
            window=self.window,
            resident=_fits_on_device(split.images if codes is None else codes),
            num_workers=self.num_workers,
            draw_binary=self.binarize == "dynamic",
        )

    def val_dataloader(self) -> EvalLoader:
        """Build the loader of validation images in order."""
        return self._eval_loader("val", self.max_val_images)

    def test_dataloader(self) -> EvalLoader:
        """Build the loader of test images in order."""
        return self._eval_loader("test", None)

    def _eval_loader(self, name: SplitName, max_images: int | None) -> EvalLoader:
        rank, world_size = self._rank()
        return EvalLoader(
            self.split(name),
            batch_size=self.batch_size,
            max_images=max_images,
            rank=rank,
            world_size=world_size,
            codes=self._codes.get(name),
            num_workers=self.num_workers,
        )

    def _read(self) -> dict[SplitName, Split]:
        self.setup()
        assert self._splits is not None
        return self._splits

    def _num_batches(self) -> int | None:
        if self.num_train_batches is not None or self.trainer is None:
            return self.num_train_batches
        if self.trainer.max_steps < 1:  # the run's length is given in epochs, or in time
            return None
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _rank(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)


def _fits_on_device(served: Tensor | StoredImages | StoredCodes) -> bool:
    """Check whether a tensor may stay on the device, so that a batch needs no copy from the host."""
    return math.prod(served.shape) * served.dtype.itemsize <= MAX_BYTES_IN_MEMORY


def _kept(codes: Tensor | StoredCodes) -> Tensor | StoredCodes:
    """Load codes that fit into memory, tokens in the smallest integer type that holds them; leave all others as they are."""
    if isinstance(codes, StoredCodes):
        return codes.all() if codes.num_bytes <= MAX_BYTES_IN_MEMORY else codes
    if codes.is_floating_point():
        return codes
    largest = int(codes.max())
    if largest <= torch.iinfo(torch.uint8).max:
        return codes.to(torch.uint8)
    return codes.to(torch.int16 if largest <= torch.iinfo(torch.int16).max else torch.int32)


def _index_digest(index: Tensor) -> str:
    return hashlib.sha256(index.contiguous().numpy().data).hexdigest()
