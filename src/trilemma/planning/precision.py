"""What a GPU does to a forward pass that the meta device does not: casts of mixed precision, fused attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# torch's documentation, "Automatic mixed precision", section "CUDA op-specific behavior": what it casts down and what up.
_LOWER, _FULL = (
    frozenset(names.split())
    for names in (
        "linear matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm addmv addr mv einsum conv1d conv2d conv3d"
        " conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention prelu",
        "acos asin cosh erfinv exp expm1 log log10 log2 log1p pow __pow__ __rpow__ reciprocal rsqrt sinh tan softplus"
        " layer_norm group_norm norm nll_loss cross_entropy kl_div l1_loss smooth_l1_loss mse_loss"
        " binary_cross_entropy_with_logits cdist dist logsumexp cumsum cumprod prod sum softmax log_softmax"
        " cosine_similarity",
    )
)


class GPURules(TorchFunctionMode):
    """Runs operations on meta tensors as torch runs them on a GPU.

    Attention becomes the memory-efficient kernel, which keeps no matrix of L x L; and with `mixed` given, the inputs of
    operations are cast as under `torch.autocast`, each weight once.

    Args:
        mixed: The lower precision, as torch.bfloat16; None casts nothing.
        on_copy: Told of every weight's cast.
    """

    def __init__(self, mixed: torch.dtype | None = None, *, on_copy: Callable[[Tensor], None] | None = None) -> None:
        super().__init__()
        self.mixed = mixed
        self._on_copy = on_copy
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # the weight is held, so that its id stays its own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        kwargs = kwargs or {}
        if self.mixed is not None and name in _LOWER | _FULL:
            args, kwargs = tree_map(self._lower if name in _LOWER else self._full, (args, kwargs))
        if name == "scaled_dot_product_attention" and args[0].is_meta:
            return _efficient_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or not value.is_meta:
            return value
        if id(value) in self._casts:
            return self._casts[id(value)][1]
        copy = value.to(self.mixed)
        if value.is_leaf and value.requires_grad:
            self._casts[id(value)] = value, copy
            if self._on_copy is not None:
                self._on_copy(copy)
        return copy

    def _full(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self.mixed and value.is_meta else value

    def forget(self) -> None:
        """Drop the casts of weights, as leaving `torch.autocast` does."""
        self._casts.clear()


def _efficient_attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False, **_: Any
) -> Any:
    bias = None if attn_mask is None else query.new_empty(()).expand(*query.shape[:-1], key.shape[-2])
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    return attention(query, key, value, bias, True, dropout_p, is_causal)[0]
