"""What the metrics know of a feature extractor: a name with a hash, features, and logits where it sees classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.data.split import StoredImages
from trilemma.errors import UserError

Images = Tensor | StoredImages  # uint8 [N, C, H, W], in memory or on disk


class Embedding(NamedTuple):
    """What an extractor sees: features float32 [N, d], and logits float32 [N, K] where it knows classes; on the CPU."""

    features: Tensor
    logits: Tensor | None

    def rows(self, positions: Tensor) -> Embedding:
        """The images at `positions`, int64 [n], in that order."""
        return Embedding(self.features[positions], None if self.logits is None else self.logits[positions])


class Extractor(ABC):
    """A frozen network that turns uint8 images into features.

    Images pass in batches of one size, the last one padded: the kernels that run, and with them the rounding of an
    image's features, do not depend on how many images there are.

    Args:
        name: `<what>-<sha8>`, with the hash of all that decides the features.
        label_names: Names of the classes of its logits, in order; empty where it has none.
        device: Where it runs.
        batch_size: Images at a time.
    """

    def __init__(
        self, *, name: str, label_names: tuple[str, ...], device: torch.device | str = "cpu", batch_size: int = 250
    ) -> None:
        self.name = name
        self.label_names = label_names
        self.device = torch.device(device)
        self.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        """Number of classes K of the logits; 0 where it has none."""
        return len(self.label_names)

    @abstractmethod
    def check(self, images: Images) -> None:
        """Raise `UserError` unless images [N >= 1, C, H, W] have a shape that it reads."""

    @abstractmethod
    def see(self, batch: Tensor) -> Embedding:
        """Features [B, d] and logits of a batch, uint8 [B, C, H, W], on the extractor's device."""

    def features(self, images: Images) -> Tensor:
        """Features float32 [N, d], on the CPU, of images uint8 [N, C, H, W]; raises as `embed` does."""
        return self.embed(images).features

    def logits(self, images: Images) -> Tensor:
        """Logits float32 [N, K], on the CPU, of images uint8 [N, C, H, W]; raises as `embed` does, or if it has none."""
        logits = self.embed(images).logits
        if logits is None:
            raise UserError(
                f"extractor {self.name} sees no classes: name one with logits, such as a shipped classifier"
            )
        return logits

    def accept(self, images: Images) -> None:
        """Raise `UserError` unless it can embed the images."""
        if images.dtype != torch.uint8:
            raise UserError(
                f"extractor {self.name} reads uint8 images, got {images.dtype}: round them with to_uint8 first"
            )
        if len(images.shape) != 4 or len(images) == 0:
            raise UserError(f"extractor {self.name} reads images [N >= 1, C, H, W], got {list(images.shape)}")
        self.check(images)

    @torch.no_grad()
    def embed(self, images: Images) -> Embedding:
        """Features, and logits where it has them.

        Args:
            images: uint8 [N, C, H, W] of a shape that it reads, N >= 1.

        Raises:
            UserError: If the images have another shape or type.
        """
        self.accept(images)
        features: list[Tensor] = []
        logits: list[Tensor] = []
        for chunk in chunks(images, self.batch_size):
            padding = chunk.new_zeros(self.batch_size - len(chunk), *chunk.shape[1:])
            seen = self.see(torch.cat([chunk, padding]).to(self.device))
            features.append(seen.features[: len(chunk)].float().cpu())
            if seen.logits is not None:
                logits.append(seen.logits[: len(chunk)].float().cpu())
        return Embedding(torch.cat(features), torch.cat(logits) if logits else None)


def chunks(images: Images, size: int) -> Iterator[Tensor]:
    """Consecutive images, `size` at a time."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
