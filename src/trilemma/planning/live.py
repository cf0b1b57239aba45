"""The memory that tensors hold at every moment of a computation, counted where they are made and where they end."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is open, the bytes of all storages that operations make, until nothing holds them.

    It sees what autograd keeps for the backward pass and what the backward pass makes, on any device; not the scratch space
    inside a kernel. What stood before (weights, inputs) does not count. Gradients of weights are counted apart: how many
    of them a device holds depends on how they are shared. (torch's own `MemTracker` is private, and follows modules by hooks that a
    gradient of a gradient does not survive.)

    Args:
        model: Whose parameters' gradients are told apart.

    Attributes:
        live: Bytes held now, without gradients of weights.
        gradients: Bytes of those.
        peak: The most that `live` was.
        peak_with_gradients: The most that `live + gradients` was.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.gradients = self.peak = self.peak_with_gradients = 0
        self._model = model
        self._held: dict[int, weakref.ref[Any]] = {}  # by id of the storage
        self._ignored: dict[int, Any] = {}  # the storages too, so that the ids stay theirs

    def __enter__(self) -> LiveMemory:
        self._handles = [
            p.register_post_accumulate_grad_hook(self._note_gradient)  # type: ignore[no-untyped-call]
            for p in self._model.parameters()
            if p.requires_grad
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(storage := leaf.untyped_storage()) not in self._held:
                self._ignored[id(storage)] = storage  # it was there before the first operation
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return out

    def ignore(self, tensor: Tensor) -> None:
        """Count a tensor no longer: something else accounts for it."""
        storage = tensor.untyped_storage()
        if self._held.pop(id(storage), None) is not None:
            self._ignored[id(storage)] = storage
            self.live -= storage.nbytes()

    def _see(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._held or key in self._ignored:
            return

        def end(_: Any) -> None:
            del self._held[key]
            self.live -= size

        self._held[key] = weakref.ref(storage, end)
        self.live += size
        self._mark()

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        before = self.live
        self.ignore(parameter.grad)  # once: a weight that is used twice is told twice
        self.gradients += before - self.live
        self._mark()

    def _mark(self) -> None:
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)
