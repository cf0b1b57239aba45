"""A count of operations that sees backward passes of every kind."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from trilemma.evaluation.cost.flops import FORMULAS

_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    **{packet: shape_wrapper(formula) for packet, formula in FORMULAS.items()},  # type: ignore[no-untyped-call]
}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts floating-point operations while it is open, by the formulas of `flop_counter`.

    torch's own counter also follows which module it is in, by hooks that a gradient of a gradient does not survive.

    Attributes:
        total: Operations so far, 2 for a multiplication with its addition.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=out))
        return out
