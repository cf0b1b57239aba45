"""Batches without per-image Python: each one is an index operation on uint8 images.

Neither class is a torch DataLoader: there are no workers to start and no global generator to draw from, and Lightning
replaces no sampler of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trilemma.data.batch import Batch
from trilemma.data.images import to_float
from trilemma.data.split import MappedImages, Split
from trilemma.errors import UserError


@dataclass(frozen=True)
class _Epoch:
    """One pass over the training images: their order, and which are mirrored."""

    number: int
    order: npt.NDArray[np.int64]
    order_on_device: Tensor
    flip: Tensor | None


class BatchStream:
    """The training batches of a whole run, one after another.

    Batch n is a pure function of (seed, n): epoch n // per_epoch is a permutation of the images drawn from
    (seed, epoch), its last incomplete batch dropped. The only state is the number of batches handed out, so a stream
    that continues from a checkpoint written between two batches gives exactly those that were left. `len()` is the
    number of batches of one pass of the trainer, normally the whole run; a further pass goes on where the last one
    ended and repeats nothing.

    Args:
        split: Training images.
        batch_size: Images in a global batch; each rank gets an equal, contiguous part of it.
        num_batches: Length of one pass; None makes it one epoch of the data.
        seed: Of order and mirroring.
        rank: Which part of each global batch to give.
        world_size: Number of parts.
        flip: Mirror each image left to right with probability 1/2.
        codes: Integers [N, L] or floats [N, ...] given instead of images; with `flip` [2, N, ...], of the images and of their
            mirrors.
        device: Where the images are kept and the batches appear. Images on disk are read through the CPU.

    Raises:
        UserError: If the batch does not divide over the ranks.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        num_batches: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        flip: bool = False,
        codes: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        check_batch_size(batch_size, len(split), world_size)
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be positive, got {num_batches}")
        if codes is not None and tuple(codes.shape[: 1 + flip]) != (2,) * flip + (len(split),):
            raise ValueError(f"codes must be {'[2, N, ...]' if flip else '[N, ...]'}, got {tuple(codes.shape)}")
        self._device = torch.device("cpu") if device is None else device
        # Codes stand in for the images: those need not be moved, nor read from disk.
        self._codes = None if codes is None else codes.to(self._device)
        self._images = split.images if codes is not None else _place(split.images, self._device)
        self._labels = None if split.labels is None else split.labels.to(self._device)
        self._index = split.index.to(self._device)
        self._captions = split.captions
        self._num_images = len(split)
        self._batch_size = batch_size
        self._per_epoch = len(split) // batch_size
        self._num_batches = self._per_epoch if num_batches is None else num_batches
        self._seed = seed
        self._part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._flip = flip
        self._position = 0
        self._epoch: _Epoch | None = None

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator looks at the position when its first batch is asked for: Lightning calls iter() once before it
        # restores the position and once after.
        end = (self._position // self._num_batches + 1) * self._num_batches
        while self._position < end:
            number = self._position
            self._position += 1
            yield self.batch(number)

    def batch(self, number: int) -> Batch:
        """This rank's part of global batch `number` (0, 1, ...), whatever was asked for before."""
        epoch = self._order(number // self._per_epoch)
        start = number % self._per_epoch * self._batch_size
        mine = slice(start + self._part.start, start + self._part.stop)
        where = epoch.order_on_device[mine]
        flip = None if epoch.flip is None else epoch.flip[mine]
        batch = Batch(index=self._index[where])
        if self._codes is not None:
            codes = self._codes.index_select(0, where) if flip is None else self._codes[flip.long(), where]
            batch["code"] = _as_served(codes)
        else:
            if isinstance(self._images, MappedImages):
                images = self._images[epoch.order[mine]].to(self._device)
            else:
                images = self._images.index_select(0, where)
            if flip is not None:
                images = torch.where(flip[:, None, None, None], images.flip(-1), images)
            batch["image"] = to_float(images)
        if self._labels is not None:
            batch["label"] = self._labels[where]
        if self._captions is not None:
            batch["caption"] = [self._captions[i] for i in epoch.order[mine]]
        return batch

    def _order(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            rng = np.random.default_rng([self._seed, number])
            order = rng.permutation(self._num_images)
            flip = torch.from_numpy(rng.random(self._num_images) < 0.5).to(self._device) if self._flip else None
            # One transfer an epoch: a batch is then a slice, with no copy from the host.
            self._epoch = _Epoch(number, order, torch.from_numpy(order).to(self._device), flip)
        return self._epoch

    def state_dict(self) -> dict[str, Any]:
        """Batches handed out so far, with what gives their numbers a meaning."""
        return {"position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches that were handed out.

        Raises:
            UserError: If the stream is not the one that the state came from.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"cannot resume: the checkpoint's run had {name} {state[name]}, this one has {value};"
                    " set it back, or start a new run with init_from=CKPT"
                )
        self._position = int(state["position"])

    def _identity(self) -> dict[str, int]:
        return {"seed": self._seed, "batch_size": self._batch_size, "num_images": self._num_images}


class EvalLoader:
    """The images of a split in order, each exactly once over all ranks: no padding, no shuffling.

    Every rank sees the same number of batches, so that collective operations in a validation step match.

    Args:
        split: Images.
        batch_size: Images in a global batch; each rank gets a contiguous part of it.
        max_images: Stop after the first so many; None gives all.
        rank: Which part of each global batch to give.
        world_size: Number of parts.
        codes: Integers [N, L] or floats [N, ...], given beside the images.

    Raises:
        UserError: If there are fewer images than ranks.
    """

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        max_images: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        codes: Tensor | None = None,
    ) -> None:
        num_images = len(split) if max_images is None else min(max_images, len(split))
        if num_images < world_size:
            raise UserError(f"{num_images} images cannot be shared by {world_size} devices: raise data.max_val_images")
        self._split = split
        self._codes = codes
        self._rank = rank
        self._world_size = world_size
        self._bounds = [*range(0, num_images, max(batch_size, world_size)), num_images]
        # A last batch too small to give every rank an image joins the one before.
        if len(self._bounds) > 2 and self._bounds[-1] - self._bounds[-2] < world_size:
            del self._bounds[-2]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        split = self._split
        for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True):
            size = stop - start
            first = start + self._rank * size // self._world_size
            mine = slice(first, start + (self._rank + 1) * size // self._world_size)
            batch = Batch(image=to_float(split.images[mine]), index=split.index[mine])
            if self._codes is not None:
                batch["code"] = _as_served(self._codes[mine])
            if split.labels is not None:
                batch["label"] = split.labels[mine]
            if split.captions is not None:
                batch["caption"] = split.captions[mine]
            yield batch


def check_batch_size(batch_size: int, num_images: int, world_size: int) -> None:
    """Refuse a training batch that cannot be filled or shared.

    Raises:
        UserError: If it is below 1, above the number of training images, or no multiple of the number of ranks.
    """
    if not 1 <= batch_size <= num_images:
        raise UserError(f"data.batch_size={batch_size} must lie between 1 and {num_images}, the training images")
    if batch_size % world_size:
        raise UserError(f"data.batch_size={batch_size} is the batch of all devices: make it a multiple of {world_size}")


def _as_served(codes: Tensor) -> Tensor:
    """Tokens are int64 whatever integers they are kept as."""
    return codes if codes.is_floating_point() else codes.long()


def _place(images: Tensor | MappedImages, device: torch.device) -> Tensor | MappedImages:
    return images if isinstance(images, MappedImages) else images.to(device)
