"""What a GPU does to a forward pass that the meta device does not: casts of mixed precision, fused attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# torch's documentation, "Automatic mixed precision", section "CUDA op-specific behavior": what it casts down and what up.
_LOWER = _names(
    "linear matmul __matmul__ __rmatmul__ mm bmm addmm baddbmm addbmm addmv addr mv einsum conv1d conv2d conv3d"
    " conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention prelu"
)
_FULL = _names(
    "acos asin cosh erfinv exp expm1 log log10 log2 log1p pow __pow__ __rpow__ reciprocal rsqrt sinh tan softplus layer_norm"
    " group_norm norm nll_loss cross_entropy kl_div l1_loss smooth_l1_loss mse_loss binary_cross_entropy_with_logits cdist dist"
    " logsumexp cumsum cumprod prod sum softmax log_softmax cosine_similarity"
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
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.mixed is not None and name in _LOWER:
            args, kwargs = tree_map(self._lower, (args, kwargs))
        elif self.mixed is not None and name in _FULL:
            args, kwargs = tree_map(self._full, (args, kwargs))
        if name == "scaled_dot_product_attention" and args[0].is_meta:
            return _efficient_attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or not value.is_meta:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.mixed)
        if id(value) not in self._casts:
            copy = value.to(self.mixed)
            self._casts[id(value)] = (value, copy)
            if self._on_copy is not None:
                self._on_copy(copy)
        return self._casts[id(value)][1]

    def _full(self, value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype == self.mixed and value.is_meta else value

    def forget(self) -> None:
        """Drop the casts of weights, as leaving `torch.autocast` does."""
        self._casts.clear()


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    bias = None
    if attn_mask is not None:
        bias = query.new_empty(()).expand(*query.shape[:-1], key.shape[-2])
    out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, dropout_p, is_causal
    )[0]
    return out
