"""Watch for NaN and infinity, and keep them out of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.monitors.base import Monitor, stopped
from trilemma.errors import UserError

_NEVER = torch.iinfo(torch.int64).max


class NonFinite(Monitor):
    """Stops at a loss that is not finite, and refuses to write weights that are not finite to a checkpoint.

    The first bad batch of each term is recorded on the device, without synchronising. The records are read every few
    batches, before a validation and before a checkpoint is written.

    A checkpoint with a weight that is not finite, or a buffer that is NaN (infinities may be a mask's), is refused even
    with `stop=False`.

    Args:
        every_n_batches: How often the records are read.
        stop: See `Monitor`.
    """

    def __init__(self, every_n_batches: int = 50, *, stop: bool = True) -> None:
        super().__init__(stop=stop)
        if every_n_batches < 1:
            raise UserError(f"every_n_batches={every_n_batches} of the non-finite monitor must be at least 1")
        self.every_n_batches = every_n_batches
        self._names: tuple[str, ...] = ()
        self._first_bad: Tensor | None = None  # batch at which each of `_names` was first not finite, int64

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Record which losses are not finite."""
        values = _scalars(outputs)
        if tuple(values) != self._names:
            self._read(trainer)
            self._names = tuple(values)
        if values:
            bad = ~torch.stack([value.float() for value in values.values()]).isfinite()
            now = torch.where(bad, num_batches(trainer), _NEVER)
            self._first_bad = now if self._first_bad is None else torch.minimum(self._first_bad, now)
        if num_batches(trainer) % self.every_n_batches == 0:
            self._read(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the records before a validation of broken weights."""
        self._read(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to write weights that are not finite."""
        self._read(trainer)
        broken = _first_broken(checkpoint["state_dict"], {name for name, _ in pl_module.named_parameters()})
        if trainer.strategy.reduce_boolean_decision(broken is not None, all=False):
            raise stopped(trainer, f"{broken or 'a weight of another process'} is not finite")

    def _read(self, trainer: L.Trainer) -> None:
        if self._first_bad is None:
            return
        first_bad, self._first_bad = trainer.strategy.reduce(self._first_bad, reduce_op="min"), None
        batches = first_bad.tolist()
        batch = min(batches)
        if batch == _NEVER:
            self.judge(trainer, None)
        else:
            self.judge(trainer, f"train/{self._names[batches.index(batch)]} of batch {batch} is not finite")


def _scalars(outputs: Any) -> dict[str, Tensor]:
    """List the terms of the loss, then the loss that they make up."""
    if not isinstance(outputs, Mapping):
        return {} if outputs is None else {"loss": outputs.detach()}
    values = dict(outputs.get("terms", {}))
    return values | {"loss": outputs["loss"].detach()} if "loss" in outputs else values


def _first_broken(state: Mapping[str, Any], parameters: set[str]) -> str | None:
    floats = {name: x for name, x in state.items() if isinstance(x, Tensor) and x.is_floating_point()}
    if not floats:
        return None
    # One synchronisation with the device, whatever the number of weights.
    fine = torch.stack([(x.isfinite() if name in parameters else ~x.isnan()).all() for name, x in floats.items()])
    return next((name for name, is_fine in zip(floats, fine.tolist(), strict=True) if not is_fine), None)
