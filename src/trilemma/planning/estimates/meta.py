"""Modules whose weights are shapes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)


@contextmanager
def on_meta() -> Iterator[None]:
    """Put every parameter and buffer that a module registers meanwhile on the meta device.

    Unlike `torch.device("meta")` it leaves all other tensors alone: schedules that check their own tables go on working. A
    weight is moved before it is filled, so half a billion of them take no memory and no time.
    """
    handles = [  # what a hook returns takes the place of what is registered; torch's annotation forgets that
        register_module_parameter_registration_hook(_parameter),  # type: ignore[arg-type]
        register_module_buffer_registration_hook(_buffer),  # type: ignore[arg-type]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parameter(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    if parameter is None or parameter.is_meta:
        return None  # what is registered stays as it is
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


def _buffer(module: nn.Module, name: str, buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None or buffer.is_meta else buffer.to("meta")
