"""Activation checkpointing and compilation of a model's networks, block by block.

Both change how a module's `forward` runs and nothing else: names and values of weights, and with them every checkpoint, are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trilemma.errors import UserError
from trilemma.networks.block_structure import HasBlocks


def trained_networks(model: nn.Module) -> list[nn.Module]:
    """Find the outermost modules that declare blocks and have a weight to train."""
    found: list[nn.Module] = []
    for module in model.modules():
        inside = any(module is part for network in found for part in network.modules())
        if isinstance(module, HasBlocks) and not inside and any(p.requires_grad for p in module.parameters()):
            found.append(module)
    return found


def inner_blocks(network: nn.Module) -> list[nn.Module]:
    """List a network's blocks, without the network itself."""
    assert isinstance(network, HasBlocks)
    return [block for block in network.layer_blocks() if block is not network]


def recompute_activations(model: nn.Module) -> None:
    """Checkpoint activations: keep each block's inputs only, and recompute the rest in the backward pass.

    Memory for activations shrinks to about one block's and the inputs of all; a step costs one more forward pass. What a block
    draws (dropout) is drawn again from the same states, so gradients are equal bit for bit.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".

    Raises:
        UserError: If no network of the model has blocks.
    """
    blocks = [block for network in trained_networks(model) for block in inner_blocks(network)]
    if not blocks:
        raise UserError(
            f"activation_checkpointing=true: no network of a {type(model).__name__} has blocks to recompute"
        )
    for block in blocks:
        block.forward = _recomputing(block.forward)


def compile_networks(model: nn.Module, *, sharded: bool = False) -> None:
    """Compile the blocks of each network, or the whole network where its blocks differ.

    Units that are alike share one compiled function, which is there in a fraction of the time that the network would take. A
    discriminator declares no blocks and is not compiled: its penalty differentiates twice.

    Args:
        model: Its modules are changed in place.
        sharded: Whether the weights of each block will be gathered before it runs: that cannot be part of a compiled network.

    Raises:
        UserError: If no network of the model declares blocks, or they are not alike and sharded.
    """
    networks = trained_networks(model)
    if not networks:
        raise UserError(f"compile=true: no network of a {type(model).__name__} says what to compile; leave out compile")
    for network in networks:
        blocks = inner_blocks(network)
        alike = len({_layout(block) for block in blocks}) == 1
        if sharded and blocks and not alike:
            raise UserError(
                f"compile=true with trainer=fsdp: the blocks of a {type(network).__name__} differ, so it is compiled as a whole, "
                "which sharding breaks up; take trainer=ddp, or leave out compile"
            )
        for part in blocks if alike else [network]:
            part.compile()


def _layout(block: nn.Module) -> tuple[tuple[str, torch.Size], ...]:
    return tuple((name, p.shape) for name, p in block.named_parameters())


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
