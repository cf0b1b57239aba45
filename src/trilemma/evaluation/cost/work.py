"""What drawing an image takes, whatever the machine: function evaluations, operations, parameters."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trilemma.evaluation.cost.calls import CallCounter, Tally, subnetworks
from trilemma.evaluation.cost.flops import flop_counter

Draw = Callable[[int], Tensor]
"""Draws so many images."""


@dataclass(frozen=True, kw_only=True)
class SubnetworkWork:
    """What one sub-network did.

    Attributes:
        name: Name in the model ("network", "codec"); the class of a module that is no part of it.
        counted_at: The module whose calls are counted: the sub-network itself, or where it is entered by other methods
            than `forward`, the heaviest of the modules that these call ("codec.decoder").
        num_calls: Calls for the batch that was drawn.
        evaluations_per_image: Sum of the batch sizes of these calls over the number of images: copies of an image for
            the branches of a guidance count.
        flops_per_image: Operations, 2 for a multiplication with its addition.
        num_parameters: Parameters of it that were read.
    """

    name: str
    counted_at: str
    num_calls: int
    evaluations_per_image: float
    flops_per_image: float
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """What drawing an image takes.

    Attributes:
        subnetworks: Those that ran, in the order of their first calls; the decoder of a codec is one of them.
        flops_per_image: All operations, those of the sub-networks and those outside.
        flops_outside_per_image: Operations of the sampler and the process themselves.
        num_parameters: Parameters that were read, each once, whichever module holds it. A codebook that follows a
            moving average is no parameter.
        num_images: Number of images in the batch that was counted.
    """

    subnetworks: tuple[SubnetworkWork, ...]
    flops_per_image: float
    flops_outside_per_image: float
    num_parameters: int
    num_images: int

    def subnetwork(self, name: str) -> SubnetworkWork:
        """One of the sub-networks.

        Raises:
            KeyError: If it did not run.
        """
        for found in self.subnetworks:
            if found.name == name:
                return found
        raise KeyError(f"{name!r} did not run; there are {[found.name for found in self.subnetworks]}")


def count_work(model: nn.Module, draw: Draw, *, num_images: int = 1) -> Work:
    """Count while `draw(num_images)` runs, compiled and fused layers in their plain form.

    Args:
        model: Whose sub-networks are told apart.
        draw: Draws images with it.
        num_images: How many are drawn, as one batch.
    """
    reads = _Reads()
    with _transparent(), flop_counter() as flops:
        counter = CallCounter(model, num_images=num_images, flops_so_far=flops.get_total_flops)
        with counter, reads:
            draw(num_images)
        total = flops.get_total_flops()
    modules = subnetworks(model) | counter.foreign
    by_name: dict[str, dict[str, Tally]] = {}
    for path, tally in counter.tallies.items():
        by_name.setdefault(tally.subnetwork, {})[path] = tally
    return Work(
        subnetworks=tuple(
            _summary(name, tallies, num_images, reads.count(modules[name].parameters()))
            for name, tallies in by_name.items()
        ),
        flops_per_image=total / num_images,
        flops_outside_per_image=counter.flops_outside / num_images,
        num_parameters=reads.count([*model.parameters(), *_parameters(counter.foreign.values())]),
        num_images=num_images,
    )


def _summary(name: str, tallies: dict[str, Tally], num_images: int, num_parameters: int) -> SubnetworkWork:
    heaviest = max(tallies, key=lambda path: tallies[path].flops)  # the first of equals
    return SubnetworkWork(
        name=name,
        counted_at=heaviest,
        num_calls=tallies[heaviest].num_calls,
        evaluations_per_image=tallies[heaviest].num_examples / num_images,
        flops_per_image=sum(tally.flops for tally in tallies.values()) / num_images,
        num_parameters=num_parameters,
    )


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the memory that operations read.

    More exact than the parameters of the modules that ran: a codebook is read outside any call, and torch's own attention
    layer reads the weights of a projection that it never calls.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._storages.update(_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return func(*args, **kwargs)

    def count(self, parameters: Iterable[nn.Parameter]) -> int:
        """Number of entries of those parameters, of each once, that were read."""
        return sum(p.numel() for p in dict.fromkeys(parameters) if p.numel() and _storage(p) in self._storages)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _parameters(modules: Iterable[nn.Module]) -> Iterable[nn.Parameter]:
    for module in modules:
        yield from module.parameters()


@contextmanager
def _transparent() -> Iterator[None]:
    """Run every layer as itself: hooks and counters see nothing inside a compiled graph or a fused layer."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Whoever compiled something has imported the compiler; for all others that import would take seconds.
    compiled = "torch._dynamo" in sys.modules
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
