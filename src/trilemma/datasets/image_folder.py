"""A folder of images."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.data.decode import check_decoding, decoded
from trilemma.data.split import MappedImages, balanced_order, check_fractions
from trilemma.errors import UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Listing:
    """Image files of a folder, with their labels and captions.

    Attributes:
        paths: N files.
        labels: N class numbers, or None.
        label_names: Names of the classes, or None.
        captions: N captions, or None.
    """

    paths: list[Path]
    labels: list[int] | None = None
    label_names: list[str] | None = None
    captions: list[str] | None = None


class ImageFolder(ImageData):
    """Images in one of three layouts.

    - `root/metadata.jsonl` with lines `{"file_name": "a.png", "text": "a red cube"}` ("caption" serves too): captions.
    - `root/CLASS/**/a.png`: the sub-folders, sorted by name, are the labels.
    - `root/a.png`: neither.

    They are decoded once into a memory-mapped cache, so the set may be larger than the memory.

    Args:
        root: The folder.
        cache_dir: Where the decoded images go.
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: "crop" takes the largest central square, "stretch" the whole image.
        val_fraction: Share of "val"; at least one image.
        test_fraction: Share of "test"; at least one image.
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        split_seed: Of the choice of the splits.
        flip: Mirror training images.
        max_val_images: Validate on so many images.
        num_workers: Processes that make batches ahead.

    Raises:
        UserError: If the folder is missing, empty or of no known layout, a file is damaged, or an argument is out of
            range.
    """

    name = "image_folder"

    def __init__(
        self,
        *,
        root: str | Path,
        cache_dir: str | Path,
        size: int,
        channels: int = 3,
        resize: Literal["crop", "stretch"] = "crop",
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
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
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root).expanduser()
        self.cache_dir = Path(cache_dir).expanduser()
        self.decoding = check_decoding(size, channels, resize)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction

    @classmethod
    def declared(cls, options: Mapping[str, Any]) -> DeclaredData:
        """See `ImageData`; images have one size, and only the files tell their number and classes."""
        return DeclaredData(image_shape=(options["channels"], options["size"], options["size"]))

    def read(self) -> tuple[dict[SplitName, Split], list[str] | None]:
        """List the folder and decode what is not in the cache."""
        listing = self.listing()
        array, digest = decoded(listing.paths, self.decoding, cache_dir=self.cache_dir)
        labels = None if listing.labels is None else np.array(listing.labels, dtype=np.int64)
        splits = {
            name: Split(
                images=MappedImages(array, rows, digest=digest),
                labels=None if labels is None else torch.from_numpy(labels[rows]),
                captions=None if listing.captions is None else [listing.captions[i] for i in rows],
                index=torch.from_numpy(rows),
            )
            for name, rows in self.rows(listing).items()
        }
        return splits, listing.label_names

    def listing(self) -> Listing:
        """List the image files."""
        return list_images(self.root)

    def rows(self, listing: Listing) -> dict[SplitName, npt.NDArray[np.int64]]:
        """Assign files to splits: their rows, int64 [N], by split."""
        num_images = len(listing.paths)
        num_val = max(1, round(self.val_fraction * num_images))
        num_test = max(1, round(self.test_fraction * num_images))
        if num_images < num_val + num_test + 1:
            raise UserError(f"{self.root}: {num_images} images are too few for three splits; add some")
        labels = None if listing.labels is None else np.array(listing.labels, dtype=np.int64)
        order = balanced_order(num_images, seed=self.split_seed, labels=labels)
        val, test, train = np.split(order, [num_val, num_val + num_test])
        return {"train": train, "val": val, "test": test}


def list_images(root: Path) -> Listing:
    """Find the images of a folder, in an order independent of the file system.

    Raises:
        UserError: If the folder is missing, empty, of no known layout, or its metadata are wrong.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.root to your images")
    if (root / _METADATA).is_file():
        return _read_metadata(root / _METADATA)
    entries = sorted(entry for entry in root.iterdir() if not entry.name.startswith("."))
    flat = [entry for entry in entries if _is_image(entry)]
    classes = {entry.name: _images_below(entry) for entry in entries if entry.is_dir()}
    classes = {name: paths for name, paths in classes.items() if paths}
    if flat and classes:
        raise UserError(
            f"{root}: images beside class folders ({flat[0].name}, {next(iter(classes))}/); move the images into one,"
            f" or write {_METADATA}"
        )
    if flat:
        return Listing(flat)
    if not classes:
        raise UserError(f"{root}: no images ({', '.join(sorted(SUFFIXES))}); set data.root to your images")
    return Listing(
        paths=[path for paths in classes.values() for path in paths],
        labels=[label for label, paths in enumerate(classes.values()) for _ in paths],
        label_names=list(classes),
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if _is_image(path) and not path.name.startswith("."))


def _read_metadata(metadata: Path) -> Listing:
    paths, captions = [], []
    for number, line in enumerate(metadata.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{metadata}, line {number}"
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: not JSON ({error.msg}); write one object a line") from None
        if not isinstance(entry, dict):
            raise UserError(f'{where}: not an object; write {{"file_name": ..., "text": ...}}')
        name, caption = entry.get("file_name"), entry.get("text", entry.get("caption"))
        if not isinstance(name, str) or not isinstance(caption, str):
            raise UserError(f'{where}: "file_name" and "text" (or "caption") must both be strings')
        path = metadata.parent / name
        if not path.is_file():
            raise UserError(f"{where}: {name} does not exist; add the file or remove the line")
        paths.append(path)
        captions.append(caption)
    if not paths:
        raise UserError(f"{metadata}: names no images; write one object a line")
    return Listing(paths, captions=captions)
