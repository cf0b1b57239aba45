"""A folder of images."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from trilemma.data.base import DeclaredData, ImageData, Split, SplitName
from trilemma.data.decode import check_decoding, decoded
from trilemma.data.files import read_lines
from trilemma.data.split import MappedImages, balanced_order, check_fractions
from trilemma.distributed.job import place
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
        left_out: What lies in the folder and is not taken, by reason.
    """

    paths: list[Path]
    labels: list[int] | None = None
    label_names: list[str] | None = None
    captions: list[str] | None = None
    left_out: dict[str, list[Path]] = field(default_factory=dict)

    def summary(self) -> str:
        """Say how many images are taken and how many files are left out, and why."""
        taken = f"{len(self.paths)} images"
        if self.label_names is not None:
            taken += f" of {len(self.label_names)} classes"
        left = [
            f"{len(paths)} {why} ({paths[0].name}{', ...' * (len(paths) > 1)})" for why, paths in self.left_out.items()
        ]
        return taken + (f"; left out: {', '.join(left)}" if left else "")


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
        if place().rank == 0:
            print(f"{self.root}: {listing.summary()}", flush=True)
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
    left: dict[str, list[Path]] = {}
    flat, folders = _sorted_out(root, left)
    classes = {folder.name: _images_below(folder, left) for folder in folders}
    classes = {name: paths for name, paths in classes.items() if paths}
    if flat and classes:
        raise UserError(
            f"{root}: images beside class folders ({flat[0].name}, {next(iter(classes))}/); move the images into one,"
            f" or write {_METADATA}"
        )
    if flat:
        return Listing(flat, left_out=left)
    if not classes:
        raise UserError(f"{root}: no images ({', '.join(sorted(SUFFIXES))}); set data.root to your images")
    return Listing(
        paths=[path for paths in classes.values() for path in paths],
        labels=[label for label, paths in enumerate(classes.values()) for _ in paths],
        label_names=list(classes),
        left_out=left,
    )


def _sorted_out(folder: Path, left: dict[str, list[Path]]) -> tuple[list[Path], list[Path]]:
    """List the images and the folders in a folder, sorted; what is neither, or hidden, is noted in `left`."""
    images, folders = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            left.setdefault("hidden", []).append(entry)
        elif entry.is_dir():
            folders.append(entry)
        elif entry.suffix.lower() not in SUFFIXES:
            left.setdefault("no images by their names", []).append(entry)
        elif entry.is_file():
            images.append(entry)
        else:
            left.setdefault("links that lead nowhere", []).append(entry)
    return images, folders


def _images_below(folder: Path, left: dict[str, list[Path]], above: frozenset[Path] = frozenset()) -> list[Path]:
    """List the images at any depth, through links too, but not round in circles."""
    real = folder.resolve()
    if real in above:
        left.setdefault("links to a folder that they lie in", []).append(folder)
        return []
    images, folders = _sorted_out(folder, left)
    found = [*images, *(path for below in folders for path in _images_below(below, left, above | {real}))]
    return sorted(found)


def _read_metadata(metadata: Path) -> Listing:
    paths, captions = [], []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(metadata), start=1):
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
        if (earlier := lines.setdefault(os.path.normpath(path), number)) < number:
            raise UserError(f"{where}: {name[:100]} is named by line {earlier} too; remove one of the two")
        if not os.path.isfile(path):  # a name that is too long for the system is none either
            raise UserError(f"{where}: {name[:100]} does not exist; add the file or remove the line")
        paths.append(path)
        captions.append(caption)
    if not paths:
        raise UserError(f"{metadata}: names no images; write one object a line")
    named = set(lines)
    unnamed = [
        path
        for path in sorted(metadata.parent.iterdir())
        if path.suffix.lower() in SUFFIXES and os.path.normpath(path) not in named
    ]
    return Listing(paths, captions=captions, left_out={"not named there": unnamed} if unnamed else {})
