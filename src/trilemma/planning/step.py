"""One training step of a family on the meta device: its operations, and the memory it needs beside the weights."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint

from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.evaluation.cost.flops import flop_counter
from trilemma.models.base import BackwardPass, Family
from trilemma.planning.live import LiveMemory
from trilemma.planning.precision import GPURules
from trilemma.planning.sizes import blocks_of


@dataclass(frozen=True)
class StepWork:
    """What one step on one device takes."""

    forward_flops: int = 0  # 2 for a multiplication with its addition
    backward_flops: int = 0  # with recomputing, those of the second forward pass are among them
    kept_bytes: int = 0  # what the forward pass keeps for the backward pass
    peak_bytes: int = 0  # the most that is held at once beside weights and their gradients
    peak_with_gradients_bytes: int = 0  # the most that is held at once beside weights

    @property
    def flops(self) -> int:
        """Operations of the step."""
        return self.forward_flops + self.backward_flops


def measure_step(
    model: Family,
    batch: Batch,
    *,
    mixed: torch.dtype | None = None,
    recomputes: bool = False,
    keeps_copies: bool = True,
) -> StepWork:
    """Run the losses of a family and their backward passes on the meta device.

    Operations are those of an ordinary update, memory is that of the dearest kind (see `Family.backward_passes`). The codebook
    of a quantiser is not moved: how it moves depends on values, and takes little.

    Args:
        model: On the meta device; gradients are left as None.
        batch: On the meta device, of the size that a device gets.
        mixed: Lower precision of a mixed one.
        recomputes: Whether of each block the inputs alone are kept, and the rest is computed once more in the backward pass.
        keeps_copies: Whether copies of weights in the lower precision count, which `torch.autocast` makes and the backward pass
            needs. FSDP gathers weights in that precision instead, and drops them in between.

    Raises:
        UserError: If there are no blocks to recompute.
    """
    blocks = blocks_of(model) if recomputes else []
    if recomputes and not blocks:
        name = type(model).__name__
        raise UserError(f"activation_checkpointing=true: no network of a {name} has blocks to recompute")
    model.train()
    for module in model.modules():
        if isinstance(module, EMAQuantizer):
            module.eval()
    trained = [p for p in model.parameters() if p.requires_grad]

    def run(one: BackwardPass) -> StepWork:
        asking, memory = set(one.parameters), LiveMemory(model)
        rules = partial(GPURules, mixed, on_copy=None if keeps_copies else memory.ignore)
        # There are no random states to keep, as nothing is drawn on the meta device; the second forward pass has rules of its own.
        options: dict[str, Any] = {"preserve_rng_state": False, "context_fn": lambda: (nullcontext(), rules())}
        for p in trained:
            p.requires_grad_(p in asking)
        for block in blocks:
            block.forward = cast(Any, partial(checkpoint, block.forward, use_reentrant=False, **options))
        try:
            with flop_counter() as operations, memory:
                with (first := rules()):
                    loss = one.loss(batch)
                first.forget()
                if loss is None:
                    return StepWork()
                forward, kept = operations.get_total_flops(), memory.live
                loss.total.backward()  # type: ignore[no-untyped-call]
                both = operations.get_total_flops()
            return StepWork(forward, both - forward, kept, memory.peak, memory.peak_with_gradients)
        finally:
            for p in trained:
                p.requires_grad_().grad = None
            for block in blocks:
                del block.forward  # the class's own is found again

    updates = [[run(one) for one in passes] for passes in model.backward_passes()]
    works = [work for passes in updates for work in passes]
    return StepWork(
        forward_flops=sum(work.forward_flops for work in updates[-1]),
        backward_flops=sum(work.backward_flops for work in updates[-1]),
        kept_bytes=max(work.kept_bytes for work in works),
        peak_bytes=max(work.peak_bytes for work in works),
        peak_with_gradients_bytes=max(work.peak_with_gradients_bytes for work in works),
    )
