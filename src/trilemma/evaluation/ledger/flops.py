"""Floating-point operations as torch counts them: 2 for a multiplication with its addition."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def flop_counter() -> FlopCounterMode:
    """The counter of torch, made to see attention on CPUs too.

    It counts matrix products, convolutions and attention. All else (normalisation, softmax, activations, look-ups,
    distances, random numbers) counts nothing.
    """
    return FlopCounterMode(
        display=False,
        # torch 2.13 has a formula for each kernel of attention but this one, which then counts as free.
        custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops},
    )


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Of shapes [B, heads, L, d]; the whole square, causal or not, as torch counts its other kernels."""
    batch, heads, length, dim = query
    return int(2 * batch * heads * length * key[2] * (dim + value[3]))  # scores, then their sum over the values
