"""What is done to the units of a model's networks: recomputing their activations, compiling them.

Both change how a module's `forward` runs and nothing else: names and values of weights, and with them every checkpoint, are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trilemma.errors import UserError
from trilemma.networks.units import HasUnits


def trained_networks(model: nn.Module) -> list[nn.Module]:
    """The outermost modules that declare units and have a weight to train."""
    found: list[nn.Module] = []
    for module in model.modules():
        inside = any(module is part for network in found for part in network.modules())
        if isinstance(module, HasUnits) and not inside and any(p.requires_grad for p in module.parameters()):
            found.append(module)
    return found


def inner_units(network: nn.Module) -> list[nn.Module]:
    """A network's units, without itself."""
    assert isinstance(network, HasUnits)
    return [unit for unit in network.units() if unit is not network]


def recompute_activations(model: nn.Module) -> None:
    """Keep of every unit its inputs only, and compute the rest a second time when the gradient asks for it.

    Memory for activations shrinks to about one unit's and the inputs of all; a step costs one more forward pass. What a unit
    draws (dropout) is drawn again from the same states, so gradients are equal bit for bit.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost".

    Raises:
        UserError: If no network of the model has units.
    """
    units = [unit for network in trained_networks(model) for unit in inner_units(network)]
    if not units:
        raise UserError(f"activation_checkpointing=true: no network of a {type(model).__name__} has units to recompute")
    for unit in units:
        unit.forward = _recomputing(unit.forward)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
