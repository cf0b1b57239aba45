"""Which sub-networks of a model run, how often, and on how many examples: counted by forward hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle


@dataclass
class Tally:
    """What was counted at one module.

    Attributes:
        subnetwork: Name of the sub-network it belongs to.
        num_calls: Times it was entered from outside its sub-network.
        num_examples: Sum of the batch sizes of these calls.
        flops: Floating-point operations inside these calls.
    """

    subnetwork: str
    num_calls: int = 0
    num_examples: int = 0
    flops: int = 0


class CallCounter:
    """Counts, while it is open, the calls that enter a sub-network of a model.

    A call is counted where it enters a sub-network, at the outermost module: `network(x)` counts once, not once more for
    each of its layers. Where a sub-network is entered by another method than `forward`, the modules which that
    method calls are counted instead, each under its own path (`codec.decode` -> "codec.decoder"). A module that is no
    part of the model, as the classifier of a guidance, is a sub-network of its own, named after its class.

    Args:
        model: Whose sub-networks are told apart.
        num_images: Number of images that are drawn: what a call without any tensor among its inputs counts as.
        flops_so_far: A running count of operations, read whenever a sub-network is entered or left.

    Attributes:
        tallies: By path of the module, in the order of the first calls.
        foreign: Modules outside the model that ran, by name.
        flops_outside: Operations outside every sub-network: the sampler's and the process's own.
    """

    def __init__(self, model: nn.Module, *, num_images: int, flops_so_far: Callable[[], int]) -> None:
        self.tallies: dict[str, Tally] = {}
        self.foreign: dict[str, nn.Module] = {}
        self.flops_outside = 0
        self._model = model
        self._num_images = num_images
        self._flops_so_far = flops_so_far
        self._flops_seen = 0
        self._places: dict[nn.Module, tuple[str, str]] = {}  # module -> (sub-network, path)
        for name, subnetwork in subnetworks(model).items():
            for path, module in subnetwork.named_modules(prefix=name):
                self._places.setdefault(module, (name, path))
        # One entry a module being called: where it is counted, or None where it is not.
        self._stack: list[str | None] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        # Hooks on all modules of the process: those of a guidance or a sampler are not ours to enumerate.
        self._handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, with_kwargs=True),
        ]
        self._flops_seen = self._flops_so_far()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle()
        for handle in self._handles:
            handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._settle()
        self._stack.append(self._open(module))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._settle()
        path = self._stack.pop()
        if path is not None:
            tally = self.tallies[path]
            tally.num_calls += 1
            tally.num_examples += _batch_size(args, kwargs, default=self._num_images)

    def _open(self, module: nn.Module) -> str | None:
        """The path under which a call is counted, None where it is part of a call that is."""
        if module is self._model:
            return None
        current = self._current()
        if module not in self._places:
            if current is not None:
                return None
            self._places[module] = (name := self._name_foreign(module), name)
        name, path = self._places[module]
        if current is not None and (name in self.foreign or current.subnetwork == name):
            return None
        self.tallies.setdefault(path, Tally(name))
        return path

    def _current(self) -> Tally | None:
        return next((self.tallies[path] for path in reversed(self._stack) if path is not None), None)

    def _name_foreign(self, module: nn.Module) -> str:
        name = base = type(module).__name__
        number = 1
        while name in self.foreign:
            number += 1
            name = f"{base}-{number}"
        self.foreign[name] = module
        return name

    def _settle(self) -> None:
        """Charge the operations since the last look to whatever ran meanwhile."""
        total = self._flops_so_far()
        current = self._current()
        if current is None:
            self.flops_outside += total - self._flops_seen
        else:
            current.flops += total - self._flops_seen
        self._flops_seen = total


def subnetworks(model: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """The direct children of a model by name; the members of a list or dict of modules in its place."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            found |= subnetworks(child, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = child
    return found


def _batch_size(args: Any, kwargs: Any, *, default: int) -> int:
    """Length of the first tensor among a call's inputs."""
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and leaf.ndim > 0:
            return len(leaf)
    return default
