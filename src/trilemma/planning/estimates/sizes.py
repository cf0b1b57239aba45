"""What stands in memory throughout a run: weights, the optimiser's states, averages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from trilemma.distributed.network_blocks import inner_blocks, trained_networks
from trilemma.evaluation.cost.calls import subnetworks
from trilemma.models.base import Family

_PROBE = (2, 3, 5, 7, 11)  # sides of a small tensor in a weight's place, all different


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model and its parameters."""

    name: str
    trainable: int
    frozen: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes that a whole copy of everything takes.

    Attributes:
        parts: The model's parts, in its order, those without weights left out.
        weights: Trainable parameters.
        frozen: Frozen parameters, and buffers.
        optimiser: States of the optimiser, or of both.
        averages: Moving averages of weights.
        largest_block: Trainable parameters of the largest block that is sharded as one; 0 where there are no blocks.
        outside_blocks: Trainable parameters in no block.
        num_blocks: Number of blocks.
    """

    parts: tuple[Part, ...]
    weights: int
    frozen: int
    optimiser: int
    averages: int
    largest_block: int
    outside_blocks: int
    num_blocks: int

    @property
    def num_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(part.trainable for part in self.parts)

    @property
    def num_frozen(self) -> int:
        """Number of frozen parameters."""
        return sum(part.frozen for part in self.parts)


def measure_sizes(model: Family, *, optimiser: int, num_averages: int) -> Sizes:
    """Add up a model.

    Args:
        model: On any device.
        optimiser: Bytes of the optimiser's states; see `OptimiserProbe`.
        num_averages: How many averages are kept, each in single precision at least.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wide = sum(p.numel() * max(4, p.itemsize) for _, p in model.averaged_parameters())
    held = [p for p in model.parameters() if not p.requires_grad]
    in_blocks = [sum(_bytes(p) for p in block.parameters() if p.requires_grad) for block in blocks_of(model)]
    weights = sum(map(_bytes, trained.values()))
    return Sizes(
        parts=tuple(_parts(model)),
        weights=weights,
        frozen=sum(map(_bytes, held)) + sum(map(_bytes, model.buffers())),
        optimiser=optimiser,
        averages=num_averages * wide,
        largest_block=max(in_blocks, default=0),
        outside_blocks=weights - sum(in_blocks),
        num_blocks=len(in_blocks),
    )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of all networks that are trained, without networks that are a single one."""
    return [block for network in trained_networks(model) for block in inner_blocks(network)]


def _parts(model: nn.Module) -> Iterable[Part]:
    for name, module in subnetworks(model).items():
        counts = {True: 0, False: 0}
        for p in module.parameters():
            counts[p.requires_grad] += p.numel()
        if any(counts.values()):
            yield Part(name=name, trainable=counts[True], frozen=counts[False])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize


class OptimiserProbe:
    """Stands in for what builds an optimiser, and finds out what that optimiser keeps.

    It builds it on small tensors in the place of the weights, which may be on the meta device, lets it take a step, and scales
    the states up: a side of a state is the side of the weight whose length it has.

    Args:
        factory: Builds the optimiser from names and parameters.

    Attributes:
        name: Class of the optimiser, once it was built.
    """

    def __init__(self, factory: Callable[[Iterable[tuple[str, Parameter]]], Optimizer]) -> None:
        self._factory = factory
        self._built: list[tuple[Optimizer, dict[Parameter, Parameter]]] = []
        self.name = ""

    def __call__(self, named: Iterable[tuple[str, Parameter]]) -> Optimizer:
        """Build the optimiser on small tensors."""
        small = [(name, p, Parameter(torch.zeros(_PROBE[: p.ndim], dtype=p.dtype))) for name, p in named]
        optimizer = self._factory([(name, probe) for name, _, probe in small])
        self._built.append((optimizer, {probe: p for _, p, probe in small}))
        self.name = type(optimizer).__name__
        return optimizer

    def bytes(self) -> int:
        """Bytes of all states after a step, of all optimisers that were built."""
        return sum(self._states(optimizer, weights) for optimizer, weights in self._built)

    def _states(self, optimizer: Optimizer, weights: dict[Parameter, Parameter]) -> int:
        for probe in weights:
            probe.grad = torch.ones_like(probe)
        optimizer.step()
        return sum(
            _scaled(value, probe.shape, weight.shape) * value.itemsize
            for probe, weight in weights.items()
            for value in _tensors(optimizer.state[probe])
        )


def _tensors(state: dict[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


def _scaled(state: Tensor, probe: Sequence[int], weight: Sequence[int]) -> int:
    """Number of entries that a state would have beside a weight of this shape."""
    sides = dict(zip(probe, weight, strict=True))
    entries = 1
    for side in state.shape:
        entries *= sides.get(side, side)
    return entries
