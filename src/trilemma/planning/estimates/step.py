"""One training step of a family on the meta device: its operations, and the memory it needs beside the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.data.batch import Batch
from trilemma.models.base import BackwardPass, Family
from trilemma.planning.estimates.live import LiveMemory
from trilemma.planning.estimates.operations import Operations
from trilemma.planning.estimates.precision import GPURules


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """What one step on one device takes.

    Attributes:
        forward_flops: Operations of the forward pass, 2 for a multiplication with its addition.
        backward_flops: Operations of the backward pass; with checkpointing those of the second forward pass are among them.
        kept_bytes: What the forward pass keeps for the backward pass.
        peak_bytes: The most that is held at once beside weights and their gradients.
        peak_with_gradients_bytes: The most that is held at once beside weights.
    """

    forward_flops: int
    backward_flops: int
    kept_bytes: int
    peak_bytes: int
    peak_with_gradients_bytes: int

    @property
    def flops(self) -> int:
        """Operations of the step."""
        return self.forward_flops + self.backward_flops


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How a step is computed.

    Attributes:
        mixed: Lower precision of a mixed one.
        checkpointed: Modules whose inputs alone are kept, and which run once more in the backward pass.
        keeps_copies: Whether copies of weights in the lower precision count, which `torch.autocast` makes and the backward pass needs. FSDP
            gathers weights in that precision instead, and drops them in between.
    """

    mixed: torch.dtype | None = None
    checkpointed: Sequence[nn.Module] = ()
    keeps_copies: bool = True


def measure_step(model: Family, batch: Batch, manner: Manner = Manner()) -> StepWork:
    """Run the losses of a family and their backward passes on the meta device.

    Operations are those of an ordinary update, memory is that of the dearest kind (see `Family.backward_passes`). The codebook
    of a quantiser is not moved: how it moves depends on values, and takes little.

    Args:
        model: On the meta device; gradients are left as None.
        batch: On the meta device, of the size that a device gets.
        manner: How it is computed.

    Raises:
        ValueError: If a weight is not on the meta device.
    """
    if any(not p.is_meta for p in model.parameters()):
        raise ValueError("the model is not on the meta device: build it within on_meta()")
    was_training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, EMAQuantizer):
            module.eval()
    try:
        updates = [[_run(model, one, batch, manner) for one in passes] for passes in model.backward_passes()]
    finally:
        model.train(was_training)
    works = [work for passes in updates for work in passes]
    return StepWork(
        forward_flops=sum(work.forward_flops for work in updates[-1]),
        backward_flops=sum(work.backward_flops for work in updates[-1]),
        kept_bytes=max(work.kept_bytes for work in works),
        peak_bytes=max(work.peak_bytes for work in works),
        peak_with_gradients_bytes=max(work.peak_with_gradients_bytes for work in works),
    )


def _run(model: Family, one: BackwardPass, batch: Batch, manner: Manner) -> StepWork:
    with _others_frozen(model, one.parameters), Operations() as operations, LiveMemory(model) as memory:

        def new_rules() -> GPURules:
            return GPURules(manner.mixed, on_copy=None if manner.keeps_copies else memory.ignore)

        with _checkpointed(manner.checkpointed, new_rules):
            with (rules := new_rules()):
                loss = one.loss(batch)
            rules.forget()
            if loss is None:
                return StepWork(
                    forward_flops=0, backward_flops=0, kept_bytes=0, peak_bytes=0, peak_with_gradients_bytes=0
                )
            forward, kept = operations.total, memory.live
            loss.total.backward()  # type: ignore[no-untyped-call]
        work = StepWork(
            forward_flops=forward,
            backward_flops=operations.total - forward,
            kept_bytes=kept,
            peak_bytes=memory.peak,
            peak_with_gradients_bytes=memory.peak_with_gradients,
        )
    model.zero_grad(set_to_none=True)
    return work


@contextmanager
def _others_frozen(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    asking = set(parameters)
    others = [p for p in model.parameters() if p.requires_grad and p not in asking]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


@contextmanager
def _checkpointed(modules: Sequence[nn.Module], new_rules: Callable[[], GPURules]) -> Iterator[None]:
    def contexts() -> tuple[Any, Any]:
        return nullcontext(), new_rules()  # the second forward pass comes when the rules of the first are gone

    for module in modules:
        # There are no random states to keep: nothing is drawn on the meta device.
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": contexts}
        module.forward = cast(Any, partial(checkpoint, module.forward, **options))
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own is found again
