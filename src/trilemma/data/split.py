"""A split of a data set: its images, with labels, captions and indices."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trilemma.data.batch import Batch
from trilemma.errors import UserError

Index = slice | Tensor | npt.NDArray[np.int64]


class StoredImages(ABC):
    """Images outside memory, indexed like the uint8 tensor [N, C, H, W].

    Attributes:
        readable: Whether there is anything to read; of images known by their codes alone there is not.
        bounds: int64 [G + 1], where reading one after another is cheap: images bounds[g] to bounds[g + 1] lie in one file.
            None where any order is as good.
    """

    readable: bool = True
    bounds: npt.NDArray[np.int64] | None = None

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""

    @property
    def dtype(self) -> torch.dtype:
        """Always uint8."""
        return torch.uint8

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, index: Index) -> Tensor:
        """Read images uint8 [n, C, H, W] by slice or by positions int64 [n]."""

    @abstractmethod
    def digest(self) -> str:
        """Hash the content without reading the images again."""


class MappedImages(StoredImages):
    """Some rows of a uint8 file on disk, in a given order.

    Args:
        array: Memory-mapped uint8 [M, C, H, W].
        rows: int64 [N], which rows of `array` and in what order.
        digest: Content hash of the whole file.
    """

    def __init__(self, array: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], *, digest: str) -> None:
        self._array = array
        self._rows = rows
        self._digest = digest

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return torch.Size((len(self._rows), *self._array.shape[1:]))

    def __getitem__(self, index: Index) -> Tensor:
        """Read images uint8 [n, C, H, W] by slice or by positions int64 [n]."""
        rows = self._rows[index.numpy() if isinstance(index, Tensor) else index]
        return torch.from_numpy(np.asarray(self._array[rows]))

    def digest(self) -> str:
        """Hash the content without reading the file again."""
        return hashlib.sha256(self._digest.encode() + self._rows.tobytes()).hexdigest()


@dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        images: uint8 [N, C, H, W], in memory or on disk; both are indexed alike and give tensors.
        labels: int64 [N], or None where the data set has none.
        captions: N strings, or None.
        index: int64 [N], position of each image in its source (file, or list of files).
    """

    images: Tensor | StoredImages
    labels: Tensor | None
    captions: list[str] | None
    index: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or len(self.images.shape) != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {tuple(self.images.shape)}")
        for name, part in (("labels", self.labels), ("captions", self.captions), ("index", self.index)):
            if part is not None and len(part) != len(self.images):
                raise ValueError(f"{len(part)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_images(self) -> bool:
        """Whether the images can be read, and not their codes alone."""
        return isinstance(self.images, Tensor) or self.images.readable

    def facts(self, num: int) -> Batch:
        """Collect index, labels and captions of the first `num` images, as a batch holds them."""
        batch = Batch(index=self.index[:num])
        if self.labels is not None:
            batch["label"] = self.labels[:num]
        if self.captions is not None:
            batch["caption"] = self.captions[:num]
        return batch

    def take(self, positions: npt.NDArray[np.int64]) -> Split:
        """Select the images at `positions` [n] of a split in memory, in that order."""
        chosen = torch.from_numpy(positions)
        return Split(
            images=self.images[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            captions=None if self.captions is None else [self.captions[i] for i in positions],
            index=self.index[chosen],
        )

    def digest(self) -> str:
        """Hash images, labels and captions in their order, by sha256."""
        content = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if isinstance(self.images, StoredImages):
            content.update(self.images.digest().encode())
        else:
            content.update(self.images.contiguous().numpy().data)
        if self.labels is not None:
            content.update(self.labels.contiguous().numpy().data)
        if self.captions is not None:
            content.update("\n".join(self.captions).encode())
        return content.hexdigest()


def balanced_order(num_images: int, *, seed: int, labels: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """Shuffle so that every prefix holds each class in proportion: cutting the order makes stratified splits.

    The j-th image drawn of a class of n has the sort key (j + u) / n with u uniform in [0, 1).

    Args:
        num_images: N.
        seed: Of the order.
        labels: int64 [N]; None treats all images as one class.

    Returns:
        A permutation of 0..N-1, int64 [N].
    """
    rng = np.random.default_rng([seed])
    shuffled = rng.permutation(num_images)
    key = np.empty(num_images)
    classes = np.zeros(num_images, dtype=np.int64) if labels is None else labels[shuffled]
    for label in np.unique(classes):
        members = np.flatnonzero(classes == label)
        key[members] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    return shuffled[np.argsort(key, kind="stable")]


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that leave nothing to train on.

    Raises:
        UserError: If one is negative, or they sum to 1 or more.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise UserError(
            f"data.val_fraction={val_fraction}, data.test_fraction={test_fraction} must be at least 0 and sum to less than 1"
        )


def windowed_order(bounds: npt.NDArray[np.int64], *, rng: np.random.Generator, window: int) -> npt.NDArray[np.int64]:
    """Shuffle for few files at a time: files in random order, and the images of every `window` of them shuffled.

    Args:
        bounds: int64 [G + 1]; file g holds images bounds[g] to bounds[g + 1].
        rng: Of the order.
        window: Files whose images are mixed; G or more makes it a uniform permutation.

    Returns:
        A permutation of 0..N-1, int64 [N].
    """
    files = rng.permutation(len(bounds) - 1)
    parts = []
    for start in range(0, len(files), window):
        images = np.concatenate([np.arange(bounds[f], bounds[f + 1]) for f in files[start : start + window]])
        parts.append(rng.permutation(images))
    return np.concatenate(parts)
