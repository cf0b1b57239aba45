"""Floating-point operations as torch counts them: 2 for a multiplication with its addition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker


def flop_counter() -> FlopCounterMode:
    """The counter of torch, made to see attention on CPUs too.

    It counts matrix products, convolutions and attention. All else (normalisation, softmax, activations, look-ups,
    distances, random numbers) counts nothing.
    """
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = _NoModules()
    return counter


class _NoModules(ModuleTracker):
    """Follows no modules: nobody asks for a module's operations, and its hooks do not survive a gradient of a gradient."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: Any) -> None:
        pass


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Of shapes [B, heads, L, d]; the whole square, causal or not, as torch counts its other kernels."""
    batch, heads, length, dim = query
    return int(2 * batch * heads * length * key[2] * (dim + value[3]))  # scores, then their sum over the values


def _convolution_backward_flops(
    gradient: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Any,
    **kwargs: Any,
) -> int:
    """Of shapes: the gradient of the input and that of the weight each take what the forward pass took."""
    del bias, stride, padding, dilation, output_padding, groups  # the groups show in the weight's shape
    # Each cell of the result (of the input, where it is transposed) meets every weight once.
    cells = x[2:] if transposed else gradient[2:]
    return int(2 * x[0] * math.prod(cells) * math.prod(weight) * sum(wanted[:2]))


FORMULAS = {
    # torch 2.13 has a formula for each kernel of attention but this one, which then counts as free.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    # Its own takes no note of groups: of a convolution of every channel by itself it counts hundredfold.
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
}
