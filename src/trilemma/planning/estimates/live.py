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
    of them a device holds depends on how they are shared.

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
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}  # id of a storage -> it, and its bytes
        self._known: set[int] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> LiveMemory:
        standing = [*self._model.parameters(), *self._model.buffers()]
        self._known = {id(tensor.untyped_storage()) for tensor in standing}
        self._standing = [tensor.untyped_storage() for tensor in standing]  # so that the ids stay theirs
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
        kwargs = kwargs or {}
        # Inputs that were there before the first operation are not ours.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._held:
                self._known.add(id(leaf.untyped_storage()))
                self._standing.append(leaf.untyped_storage())
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def ignore(self, tensor: Tensor) -> None:
        """Count a tensor no longer: something else accounts for it."""
        key = id(tensor.untyped_storage())
        if key in self._held:
            self._drop(key)
            self._known.add(key)
            self._standing.append(tensor.untyped_storage())

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known or key in self._held:
            return
        self._held[key] = (weakref.ref(storage, lambda _: self._drop(key)), size)
        self.live += size
        self._mark()

    def _drop(self, key: int) -> None:
        _, size = self._held.pop(key)
        self.live -= size

    def _note_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        if id(storage) in self._held:  # once: a weight that is used twice is told twice
            self.ignore(parameter.grad)
            self.gradients += storage.nbytes()
            self._mark()

    def _mark(self) -> None:
        self.peak = max(self.peak, self.live)
        self.peak_with_gradients = max(self.peak_with_gradients, self.live + self.gradients)
