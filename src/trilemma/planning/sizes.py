"""What stands in memory throughout a run: weights, the optimiser's states, averages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from trilemma.distributed.network_blocks import inner_blocks, trained_networks
from trilemma.evaluation.cost.calls import subnetworks
from trilemma.models.base import Family, OptimizerFactory

_PROBE = (2, 3, 5, 7, 11)  # sides of a small tensor in a weight's place, all different


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Bytes that a whole copy of everything takes."""

    parts: dict[str, tuple[int, int]]  # trainable and frozen parameters of what has any, in the model's order
    weights: int  # trainable parameters
    frozen: int  # frozen parameters, and buffers
    optimiser: int  # states of the optimiser, or of both
    averages: int  # moving averages of weights
    largest_block: int  # trainable parameters of the largest block that is sharded as one; 0 where there are no blocks
    outside_blocks: int  # trainable parameters in no block
    num_blocks: int

    @property
    def num_trainable(self) -> int:
        """Number of trainable parameters."""
        return sum(trainable for trainable, _ in self.parts.values())

    @property
    def num_frozen(self) -> int:
        """Number of frozen parameters."""
        return sum(frozen for _, frozen in self.parts.values())


def measure_sizes(model: Family, *, optimiser: int, num_averages: int) -> Sizes:
    """Add up a model.

    Args:
        model: On any device.
        optimiser: Bytes of the optimiser's states; see `OptimiserProbe`.
        num_averages: How many averages are kept, each in single precision at least.
    """
    in_blocks = [_bytes(p for p in block.parameters() if p.requires_grad) for block in blocks_of(model)]
    weights = _bytes(p for p in model.parameters() if p.requires_grad)
    return Sizes(
        parts={name: counts for name, part in subnetworks(model).items() if any(counts := _counts(part))},
        weights=weights,
        frozen=_bytes(model.parameters()) - weights + _bytes(model.buffers()),
        optimiser=optimiser,
        averages=num_averages * sum(p.numel() * max(4, p.itemsize) for p in model.averaged().values()),
        largest_block=max(in_blocks, default=0),
        outside_blocks=weights - sum(in_blocks),
        num_blocks=len(in_blocks),
    )


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of all networks that are trained, without networks that are a single one."""
    return [block for network in trained_networks(model) for block in inner_blocks(network)]


def _counts(part: nn.Module) -> tuple[int, int]:
    trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in part.parameters()) - trainable


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


class OptimiserProbe:
    """Stands in for what builds an optimiser, and finds out what that optimiser keeps.

    It builds it on small tensors in the place of the weights, which may be on the meta device, lets it take a step, and scales
    the states up: a side of a state is the side of the weight whose length it has. (On the weights themselves the step of a
    fused optimiser, or of one that reads a norm, cannot be taken: they have no values.)

    Args:
        factory: Builds the optimiser from names and parameters.

    Attributes:
        bytes: Of all states after a step, of all optimisers that were built.
    """

    def __init__(self, factory: OptimizerFactory) -> None:
        self._factory = factory
        self.bytes = 0

    def __call__(self, named: Iterable[tuple[str, Parameter]]) -> Optimizer:
        """Build the optimiser on small tensors, and add its states up."""
        shapes: dict[Parameter, torch.Size] = {}
        small = []
        for name, weight in named:
            probe = Parameter(torch.zeros(_PROBE[: weight.ndim], dtype=weight.dtype))
            probe.grad = torch.ones_like(probe)
            shapes[probe] = weight.shape
            small.append((name, probe))
        optimizer = self._factory(small)
        optimizer.step()
        for probe, shape in shapes.items():
            sides = dict(zip(probe.shape, shape, strict=True))
            for state in optimizer.state[probe].values():
                if isinstance(state, Tensor):
                    self.bytes += math.prod(sides.get(side, side) for side in state.shape) * state.itemsize
        return optimizer
