"""Batches without per-image Python: each one is an index operation on uint8 images.

Neither class is a torch DataLoader: there is no global generator to draw from, and Lightning replaces no sampler of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trilemma.data.batch import Batch
from trilemma.data.binarize import draw_binary as drawn_binary
from trilemma.data.codes import StoredCodes
from trilemma.data.images import to_float
from trilemma.data.split import Split, windowed_order
from trilemma.data.workers import Workers, num_bytes
from trilemma.errors import UserError
from trilemma.processes.noise import Noise, mixed_seed

WINDOW = 16  # files


@dataclass(frozen=True)
class _Epoch:
    """One pass over the training images: their order, and which are mirrored."""

    number: int
    order: npt.NDArray[np.int64]
    order_at_home: Tensor
    flip: Tensor | None


class BatchStream:
    """The training batches of a whole run, one after another.

    Batch n is a pure function of (seed, n): epoch n // per_epoch is a permutation of the images drawn from
    (seed, epoch), its last incomplete batch dropped. What is read from many files is permuted by `windowed_order`.
    The only state is the number of batches handed out, so a stream that continues from a checkpoint written between
    two batches gives exactly those that were left. `len()` is the number of batches of one pass of the trainer,
    normally the whole run; a further pass goes on where the last one ended and repeats nothing.

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
        device: Where the batches appear.
        resident: Keep images, or codes, on `device` too. Those on disk, or that workers read, stay with the host.
        window: Files whose images are mixed, where images or codes lie in files that are best read one after another.
        num_workers: Processes that make batches ahead. They change no batch, and the state does not count what they made
            and nobody has had.
        draw_binary: Draw each image of a batch anew from its grey values, by (seed, n) and its place in the whole batch.

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
        codes: Tensor | StoredCodes | None = None,
        device: torch.device | None = None,
        resident: bool = True,
        window: int = WINDOW,
        num_workers: int = 0,
        draw_binary: bool = False,
    ) -> None:
        check_batch_size(batch_size, len(split), world_size)
        if num_batches is not None and num_batches < 1:
            raise ValueError(f"num_batches must be positive, got {num_batches}")
        if codes is not None and tuple(codes.shape[: 1 + flip]) != (2,) * flip + (len(split),):
            raise ValueError(f"codes must be {'[2, N, ...]' if flip else '[N, ...]'}, got {tuple(codes.shape)}")
        self._device = torch.device("cpu") if device is None else device
        served = split.images if codes is None else codes
        stays = num_workers > 0 or not resident or not isinstance(served, Tensor)
        home = torch.device("cpu") if stays else self._device
        # Codes stand in for the images: those need not be moved, nor read from disk.
        self._codes = codes.to(home) if isinstance(codes, Tensor) else codes
        self._images = split.images.to(home) if isinstance(split.images, Tensor) and codes is None else split.images
        self._bounds = None if isinstance(served, Tensor) else served.bounds
        self._window = window
        self._labels = None if split.labels is None else split.labels.to(home)
        self._index = split.index.to(home)
        self._captions = split.captions
        self._num_images = len(split)
        self._batch_size = batch_size
        self._per_epoch = len(split) // batch_size
        self._num_batches = self._per_epoch if num_batches is None else num_batches
        self._seed = seed
        self._part = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._flip = flip
        self._num_workers = num_workers
        self._draw_binary = draw_binary
        self._home = home
        self._position = 0
        self._epoch: _Epoch | None = None

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator looks at the position when its first batch is asked for: Lightning calls iter() once before it
        # restores the position and once after.
        end = (self._position // self._num_batches + 1) * self._num_batches
        numbers, workers = range(self._position, end), self._workers()
        gathered = map(self._gather, numbers) if workers is None else workers.made(numbers)
        try:
            while self._position < end:
                batch = _serve(next(gathered), self._device, copy=workers is not None)
                self._position += 1
                yield batch
        finally:
            if workers is not None:
                workers.close()

    def batch(self, number: int) -> Batch:
        """This rank's part of global batch `number` (0, 1, ...), whatever was asked for before."""
        return _serve(self._gather(number), self._device, copy=False)

    def _workers(self) -> Workers | None:
        if not self._num_workers:
            return None
        num = self._part.stop - self._part.start
        served = self._images if self._codes is None else self._codes
        row = served.shape[2 if self._flip and self._codes is not None else 1 :]
        size = num_bytes(((num,), torch.int64), ((num,), torch.int64), ((num, *row), served.dtype))
        return Workers(self._gather, self._num_workers, size)

    def _gather(self, number: int) -> dict[str, Any]:
        """Batch `number` as it is kept: uint8 images, small integers."""
        epoch = self._order(number // self._per_epoch)
        start = number % self._per_epoch * self._batch_size
        mine = slice(start + self._part.start, start + self._part.stop)
        where = epoch.order_at_home[mine]
        flip = None if epoch.flip is None else epoch.flip[mine]
        batch: dict[str, Any] = {"index": self._index[where]}
        codes, images = self._codes, self._images
        if isinstance(codes, StoredCodes):
            batch["code"] = codes.take(epoch.order[mine], None if flip is None else flip.numpy())
        elif codes is not None:
            batch["code"] = codes.index_select(0, where) if flip is None else codes[flip.long(), where]
        else:
            found = images.index_select(0, where) if isinstance(images, Tensor) else images[epoch.order[mine]]
            found = found if flip is None else torch.where(flip[:, None, None, None], found.flip(-1), found)
            batch["image"] = self._drawn(found, number) if self._draw_binary else found
        if self._labels is not None:
            batch["label"] = self._labels[where]
        if self._captions is not None:
            batch["caption"] = [self._captions[i] for i in epoch.order[mine]]
        return batch

    def _drawn(self, images: Tensor, number: int) -> Tensor:
        places = torch.arange(self._part.start, self._part.stop, device=images.device)
        return drawn_binary(images, Noise(mixed_seed(self._seed, number), places))

    def _order(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            rng = np.random.default_rng([self._seed, number])
            if self._bounds is None:
                order = rng.permutation(self._num_images)
            else:
                order = windowed_order(self._bounds, rng=rng, window=self._window)
            flip = torch.from_numpy(rng.random(self._num_images) < 0.5).to(self._home) if self._flip else None
            # One transfer an epoch: a batch is then a slice, with no copy from the host.
            self._epoch = _Epoch(number, order, torch.from_numpy(order).to(self._home), flip)
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
            if state.get(name) != value:
                raise UserError(
                    f"cannot resume: the checkpoint's run had {name} {state.get(name)}, this one has {value};"
                    " set it back, or start a new run with init_from=CKPT"
                )
        self._position = int(state["position"])

    def _identity(self) -> dict[str, int]:
        identity = {"seed": self._seed, "batch_size": self._batch_size, "num_images": self._num_images}
        return identity if self._bounds is None else {**identity, "window": self._window}


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
        num_workers: Processes that make batches ahead; they stay for the next pass.

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
        codes: Tensor | StoredCodes | None = None,
        num_workers: int = 0,
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
        self._workers: Workers | None = None
        if num_workers:
            most = max(mine.stop - mine.start for mine in map(self._mine, range(len(self))))
            parts = [split.index, split.labels, codes, split.images if split.has_images else None]
            size = num_bytes(*(((most, *part.shape[1:]), part.dtype) for part in parts if part is not None))
            self._workers = Workers(self._gather, num_workers, size)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        numbers = range(len(self))
        gathered = map(self._gather, numbers) if self._workers is None else self._workers.made(numbers)
        cpu, copy = torch.device("cpu"), self._workers is not None
        for number, batch in zip(numbers, gathered, strict=True):
            mine = self._mine(number)
            served = _serve(batch, cpu, copy=copy)
            served["row"] = torch.arange(mine.start, mine.stop)
            yield served

    def _mine(self, number: int) -> slice:
        start, stop = self._bounds[number : number + 2]
        size = stop - start
        first = start + self._rank * size // self._world_size
        return slice(first, start + (self._rank + 1) * size // self._world_size)

    def _gather(self, number: int) -> dict[str, Any]:
        split, mine = self._split, self._mine(number)
        batch: dict[str, Any] = {"index": split.index[mine]}
        if split.has_images:
            batch["image"] = split.images[mine]
        if self._codes is not None:
            batch["code"] = self._codes[mine]
        if split.labels is not None:
            batch["label"] = split.labels[mine]
        if split.captions is not None:
            batch["caption"] = split.captions[mine]
        return batch


def check_batch_size(batch_size: int, num_images: int, world_size: int) -> None:
    """Refuse a training batch that cannot be filled or shared.

    Raises:
        UserError: If it is below 1, above the number of training images, or no multiple of the number of ranks.
    """
    if not 1 <= batch_size <= num_images:
        raise UserError(f"data.batch_size={batch_size} must lie between 1 and {num_images}, the training images")
    if batch_size % world_size:
        raise UserError(f"data.batch_size={batch_size} is the batch of all devices: make it a multiple of {world_size}")


def _serve(gathered: Mapping[str, Any], device: torch.device, *, copy: bool) -> Batch:
    """What was gathered, on the device and in the types that models take; with `copy` in memory of its own."""
    batch: Any = {}
    for name, part in gathered.items():
        if not isinstance(part, Tensor):
            batch[name] = part
            continue
        here = part
        if part.device != device:
            here = part.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else part.to(device)
        if name == "image":
            here = to_float(here)
        elif not part.is_floating_point():  # tokens are int64 whatever integers they are kept as
            here = here.long()
        batch[name] = here.clone() if copy and here is part else here
    served: Batch = batch
    return served
