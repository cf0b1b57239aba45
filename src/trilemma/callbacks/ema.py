"""Exponential moving averages of the weights that training changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from torch import Tensor

from trilemma.distributed.sharding import gathered, local, sharded_like
from trilemma.errors import UserError
from trilemma.models.base import Family

_STATE_KEY = "EMA"


class EMA(L.Callback):
    """Keeps averages of the trainable weights, and swaps them in for validation and sampling.

    After every batch n = 0, 1, ... each average moves to d_n average + (1 - d_n) weights, where d_n = decay, or with
    warm-up min(decay, (1 + n) / (10 + n)). Batches are counted, not optimiser steps, so that two optimisers or
    accumulated gradients do not change the horizon. The family says what is averaged (`Family.averaged`): trained
    parameters and the running statistics of their batch normalisations. Frozen parameters (a first stage, a perceptual
    loss), other buffers (codebook statistics) and a discriminator are left alone. Averages are float32 or wider whatever
    the weights' type. Where processes have a part of each weight, they have that part of the averages; a checkpoint has
    them whole.

    Args:
        decays: One average each, in [0, 1); the first is the one that validation and sampling use.
        warmup: Whether early averages forget faster, so that the initial weights do not linger.
    """

    def __init__(self, decays: Sequence[float] = (0.999,), *, warmup: bool = True) -> None:
        if not decays or not all(0.0 <= decay < 1.0 for decay in decays) or len(set(decays)) != len(decays):
            raise UserError(f"decays={list(decays)} must be one or more different numbers in [0, 1)")
        self.decays = tuple(float(decay) for decay in decays)
        self.warmup = warmup
        self.num_updates = 0
        self._weights: dict[str, Tensor] = {}
        self._averages: list[dict[str, Tensor]] = []
        self._restored: list[dict[str, Tensor]] = []
        self._raw: list[Tensor] | None = None  # the weights, while an average is swapped in

    @property
    def state_key(self) -> str:
        """Where the averages live in a checkpoint's `callbacks`."""
        return _STATE_KEY

    def average(self, decay: float | None = None) -> dict[str, Tensor]:
        """Get the average of a decay (the first where None), by name."""
        return self._averages[self._index(decay)]

    @contextmanager
    def swapped(self, module: L.LightningModule, decay: float | None = None) -> Iterator[None]:
        """Replace the module's weights by an average inside the block; the weights come back bit for bit.

        Inside another `swapped` it changes nothing.
        """
        if self._raw is not None or not self._averages:
            yield
            return
        self._swap_in(module, decay)
        try:
            yield
        finally:
            self._swap_out(module)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Initialise the averages with the weights, or with those of the checkpoint."""
        assert isinstance(pl_module, Family)
        self._weights = pl_module.averaged()
        self._averages = [{name: _wide(weight) for name, weight in self._weights.items()} for _ in self.decays]
        if not self._restored:
            return
        for average, restored in zip(self._averages, self._restored, strict=True):
            if average.keys() != restored.keys():
                names = sorted(average.keys() ^ restored.keys())
                raise UserError(
                    f"the checkpoint averages other weights than this model trains ({len(names)} differ, {names[0]} for"
                    " one): start anew with init_from=CKPT"
                )
            for name, value in average.items():
                value.copy_(sharded_like(restored[name], value))
        self._restored = []

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Update every average."""
        weights = [local(weight) for weight in self._weights.values()]
        for decay, average in zip(self.decays, self._averages, strict=True):
            values = [local(value) for value in average.values()]
            current = [weight.to(value.dtype) for weight, value in zip(weights, values, strict=True)]
            torch._foreach_lerp_(values, current, 1.0 - self._decay_now(decay))
        self.num_updates += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Swap in the average for validation."""
        if self._averages and self._raw is None:
            self._swap_in(pl_module, None)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the weights."""
        self._swap_out(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the weights, so that whatever handles the exception sees them."""
        self._swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Save decays, number of updates, and one {name: tensor} a decay, in plain containers. All processes call it at once."""
        return {"decays": list(self.decays), "num_updates": self.num_updates, "averages": gathered(self._averages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the averages; they are moved to the device when fitting starts."""
        if tuple(state_dict["decays"]) != self.decays:
            raise UserError(
                f"the checkpoint averages with decays {state_dict['decays']}, not {list(self.decays)}: "
                "resume with the same decays, or start anew with init_from=CKPT"
            )
        self.num_updates = state_dict["num_updates"]
        self._restored = state_dict["averages"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the weights themselves in `state_dict`, even in a checkpoint written during validation."""
        if self._raw is not None:
            checkpoint["state_dict"].update(zip(self._averages[0], gathered(self._raw), strict=True))

    def _decay_now(self, decay: float) -> float:
        return min(decay, (1 + self.num_updates) / (10 + self.num_updates)) if self.warmup else decay

    def _index(self, decay: float | None) -> int:
        if decay is None:
            return 0
        if decay not in self.decays:
            raise UserError(f"no average with decay {decay}; there are {list(self.decays)}")
        return self.decays.index(decay)

    def _averaged(self, module: L.LightningModule) -> list[Tensor]:
        # By name, because which parameters require gradients changes while two networks are trained in turn.
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        return [named[name] for name in self._averages[0]]

    @torch.no_grad()
    def _swap_in(self, module: L.LightningModule, decay: float | None) -> None:
        # Values are copied in place: addresses stay, so compiled graphs and optimiser references do too.
        weights = self._averaged(module)
        self._raw = [weight.detach().clone() for weight in weights]
        torch._foreach_copy_([local(w) for w in weights], [local(value) for value in self.average(decay).values()])

    @torch.no_grad()
    def _swap_out(self, module: L.LightningModule) -> None:
        if self._raw is not None:
            torch._foreach_copy_([local(w) for w in self._averaged(module)], [local(value) for value in self._raw])
            self._raw = None


def ema_swapped(trainer: L.Trainer, module: L.LightningModule) -> AbstractContextManager[None]:
    """Swap in averaged weights inside the block where the trainer has an `EMA`; else leave the weights as they are."""
    for callback in getattr(trainer, "callbacks", []):
        if isinstance(callback, EMA):
            return callback.swapped(module)
    return nullcontext()


def ema_weights(checkpoint: dict[str, Any], decay: float | None = None) -> dict[str, Tensor] | None:
    """Extract averaged weights from a loaded checkpoint.

    Args:
        checkpoint: What `read_checkpoint` gives.
        decay: Which average; the first where None.

    Returns:
        All that is averaged by name, to be laid over `checkpoint["state_dict"]`; None where there is no average.

    Raises:
        UserError: If there is no average of that decay.
    """
    state = checkpoint.get("callbacks", {}).get(_STATE_KEY)
    if state is None:
        return None
    decays = state["decays"]
    if decay is not None and decay not in decays:
        raise UserError(f"the checkpoint has no average with decay {decay}; it has {decays}")
    averages: dict[str, Tensor] = state["averages"][0 if decay is None else decays.index(decay)]
    return averages


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
