"""The states of all random generators, so that a resumed run draws what the uninterrupted one would have drawn."""

from __future__ import annotations

import random
import warnings
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist


class RandomState(L.Callback):
    """Saves the torch, NumPy, Python and CUDA generators of every process and restores them on resume.

    A run that starts anew in several processes gives each its own torch generators: all were seeded alike, so that they build
    the same model, and would from then on draw the same noise and timesteps for their different images.

    They are restored when training starts and before its first batch is fetched: what a loader draws for that batch
    comes from the same states as in the uninterrupted run. A checkpoint written in the midst of a validation has those of its
    beginning, for the resumed run begins it anew.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []
        self._before_validation: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore this process's generators from the checkpoint, or seed them apart from the other processes."""
        states, self._restored, self._before_validation = self._restored, [], None
        if not states:
            if trainer.world_size > 1:
                # Far from the seeds of other runs (such as seed + 1) in the 32 bits that the CPU's generator uses.
                torch.manual_seed((torch.initial_seed() + trainer.global_rank * 0x9E3779B9) % 2**63)
            return
        if len(states) != trainer.world_size:
            if trainer.is_global_zero:
                warnings.warn(
                    f"the checkpoint was written by {len(states)} processes and is resumed by {trainer.world_size}:"
                    " what dropout and restarts of dead codes draw will differ from the uninterrupted run (its noise does not)",
                    stacklevel=2,
                )
            return
        restore(states[trainer.global_rank])

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Capture the states for a checkpoint written during this validation."""
        self._before_validation = capture()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the captured states: checkpoints save the current ones again."""
        self._before_validation = None

    def state_dict(self) -> dict[str, Any]:
        """Save the states of every rank; called on all ranks at once."""
        mine = self._before_validation or capture()
        if not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [mine]}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts."""
        self._restored = state_dict["ranks"]


def capture() -> dict[str, Any]:
    """Capture this process's generators as plain containers and tensors."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": {
            "kind": str(kind),
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
    }


def restore(state: dict[str, Any]) -> None:
    """Restore this process's generators from what `capture` returned."""
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    numpy = state["numpy"]
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))  # noqa: NPY002
    python = state["python"]
    random.setstate((python["version"], tuple(python["internal"]), python["gauss"]))
