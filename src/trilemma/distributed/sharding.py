"""Sharding of a model's weights over processes: FSDP2, block by block.

Sharded weights are `DTensor`s; what is computed from them elementwise (gradients, optimiser states, averages) is sharded alike.

Source: Zhao et al. 2023, "PyTorch FSDP: experiences on scaling fully sharded data parallel"; the per-parameter form of torch.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trilemma.distributed.network_blocks import inner_blocks, trained_networks
from trilemma.errors import UserError

T = TypeVar("T")


def shard(model: nn.Module, mesh: DeviceMesh, *, block_dtype: torch.dtype | None = None) -> None:
    """Shard every trainable weight: each process keeps its part.

    A block's weights are gathered before it runs, forward and backward, and dropped after it; so are those of a network outside its
    blocks, and those of every other module (the embedding of a condition), which makes a block of its own. Frozen weights stay whole.

    Args:
        model: On any device; its trainable weights end on the mesh's.
        mesh: One-dimensional, over all processes.
        block_dtype: What the weights of blocks are gathered in where it is not their own type; gradients are summed in float32.

    Raises:
        UserError: If the model itself holds a trainable weight: nothing would gather it.
    """
    if is_sharded(model):
        return
    policy = MixedPrecisionPolicy()
    if block_dtype is not None:
        # Inputs keep their type: bfloat16 would round a time by more than a step.
        policy = MixedPrecisionPolicy(block_dtype, torch.float32, cast_forward_inputs=False)
    for network in trained_networks(model):
        for block in inner_blocks(network):
            _shard_one(block, mesh, policy)
        _shard_one(network, mesh, MixedPrecisionPolicy())
    for module in reversed(list(model.modules())):
        if any(p.requires_grad and not isinstance(p, DTensor) for p in module.parameters(recurse=False)):
            if module is model:
                name = type(model).__name__
                raise UserError(f"trainer=fsdp cannot shard weights of a {name} itself: take trainer=ddp")
            _shard_one(module, mesh, MixedPrecisionPolicy())


def _shard_one(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    for p in module.parameters():
        if not isinstance(p, DTensor):
            # FSDP cannot shard channels-last weights; a convolution follows the layout of its input anyway.
            p.data = p.data.contiguous()
    # Reshard after each forward pass: EMA weights are swapped in between two of them.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """Check whether the model's weights are sharded, so that a forward pass takes all processes."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def gathered(tree: T) -> T:
    """Gather nested containers: sharded tensors whole on the CPU of rank 0, and empty in the others.

    All processes call it at once, on equal containers. What is not sharded is left as it is.
    """
    if isinstance(tree, DTensor):
        found = tree.full_tensor()
        kept: Any = found.cpu() if dist.get_rank() == 0 else torch.empty(0, dtype=found.dtype)
        return kept  # type: ignore[no-any-return]
    if isinstance(tree, dict):
        return type(tree)((key, gathered(value)) for key, value in tree.items())
    if isinstance(tree, (list, tuple)):
        return type(tree)(gathered(value) for value in tree)
    return tree


def sharded_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Shard a tensor that all processes hold whole as `example` is sharded; return it unchanged where that is not sharded."""
    if not isinstance(example, DTensor):
        return tensor
    placed = tensor.detach().to(example.device, example.dtype).contiguous()
    return distribute_tensor(placed, example.device_mesh, example.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor in every process; return it unchanged where it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Get this process's part of a tensor, sharing its memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
