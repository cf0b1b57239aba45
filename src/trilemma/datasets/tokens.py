"""A data set of codes without images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.data.base import ImageData, Split, SplitName
from trilemma.data.codes import META, CodeFolder, StoredCodes, read_folder
from trilemma.data.split import Index, StoredImages
from trilemma.errors import UserError

_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class TokenData(ImageData):
    """Codes that `python -m trilemma.tokenize` wrote, with labels and captions: all that a prior trains on.

    It must be given the codec that made them, which draws the samples: `codec.checkpoint=PATH`. The images stay where they are;
    what needs them (evaluation, pictures of test images) reads them by the data settings that stand beside the codes.

    Args:
        root: The folder of codes.
        verify: Read everything first and compare it with its SHA-256. Sizes are always compared.
        batch_size: See `ImageData`, as for the following.
        seed: Of the order of training batches and of mirroring.
        flip: Mirror training images: the codes must have been made with it.
        max_val_images: Validate on so many images.
        num_workers: Processes that make batches ahead.

    Raises:
        UserError: If the folder is missing, damaged or not complete, or an argument is out of range.
    """

    name = "tokens"

    def __init__(
        self,
        *,
        root: str | Path,
        verify: bool = False,
        batch_size: int = 64,
        seed: int = 0,
        flip: bool = False,
        max_val_images: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size, seed=seed, flip=flip, max_val_images=max_val_images, num_workers=num_workers
        )
        self.root = Path(root).expanduser()
        self.verify = verify
        self._folder: CodeFolder | None = None

    @property
    def codec(self) -> Mapping[str, Any]:
        """The codec that made the codes: "hash", "name", "num_classes", "code_shape"."""
        codec: Mapping[str, Any] = self._opened().meta["codec"]
        return codec

    @property
    def source(self) -> dict[str, Any] | None:
        """What builds the data set of the images, in plain containers, where that was written down."""
        node: dict[str, Any] | None = self._source["node"]
        return None if node is None else {**node, "batch_size": 1}  # no training uses it, so any batch size is valid

    @property
    def codes(self) -> dict[SplitName, StoredCodes]:
        """The codes of each split; of "train" with those of the mirror images if `flip`.

        Raises:
            UserError: If a file is not what it should be.
        """
        codes = {name: self._opened().codes(name) for name in _SPLITS}
        if not self.flip:
            codes["train"] = codes["train"].plain()
        return codes

    @property
    def fingerprint(self) -> str:
        """That of the data set of the images."""
        fingerprint: str = self._source["fingerprint"]
        return fingerprint

    @property
    def extractor_name(self) -> str:
        """As of the images."""
        name: str = self._source["extractor"]
        return name

    @property
    def channels_are_images(self) -> bool:
        """As of the images."""
        return bool(self._source["channels_are_images"])

    def read(self) -> tuple[dict[SplitName, Split], list[str] | None]:
        """Open the folder; codes are not read."""
        folder = self._opened()
        if missing := [name for name in _SPLITS if name not in folder.splits]:
            raise UserError(
                f"{self.root}: no codes of {', '.join(missing)}; python -m trilemma.tokenize with the same codec and data adds them"
            )
        if self.flip and not folder.meta["flip"]:
            raise UserError(
                f"data.flip=true: {self.root} has no codes of mirror images; take data.flip=false, or tokenize with data.flip=true"
            )
        if self.verify:
            folder.verify()
        shape = self._source["image_shape"]
        splits: dict[SplitName, Split] = {}
        for name, codes in self.codes.items():
            images = _Unread(torch.Size((codes.num_images, *shape)), folder.digest(name), self.root)
            split = Split(
                images=images, labels=folder.labels(name), captions=folder.captions(name), index=folder.index(name)
            )
            splits[name] = split
        return splits, self._source["label_names"]

    @property
    def _source(self) -> Mapping[str, Any]:
        source: Mapping[str, Any] = self._opened().meta["data"]
        return source

    def _opened(self) -> CodeFolder:
        if self._folder is None:
            self._folder = read_folder(self.root)
        if self._folder is None:
            if any(self.root.glob("*.npy.json")):
                raise UserError(
                    f"{self.root}: the codes are not complete; run python -m trilemma.tokenize again, with the same codec and data"
                )
            raise UserError(
                f"{self.root}: no codes ({META}); set data.root to a folder that python -m trilemma.tokenize wrote"
            )
        return self._folder


class _Unread(StoredImages):
    """Images of which only the codes are known."""

    readable = False

    def __init__(self, shape: torch.Size, digest: str, root: Path) -> None:
        self._shape = shape
        self._digest = digest
        self._root = root

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        return self._shape

    def __getitem__(self, index: Index) -> Tensor:
        """Refuse: there are no images to read."""
        raise UserError(
            f"{self._root} holds codes and no images, which are needed here: train a prior on it with codec.checkpoint=PATH, or take "
            "the images' own data="
        )

    def digest(self) -> str:
        """Return the digest of the codes."""
        return self._digest
