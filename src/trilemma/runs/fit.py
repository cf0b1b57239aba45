"""`Trainer.fit`, in as many processes as the trainer starts, none of which outlives it."""

from __future__ import annotations

import subprocess
from contextlib import nullcontext

from lightning import Trainer

from trilemma import signals
from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.data.base import ImageData
from trilemma.errors import Stopped
from trilemma.models.base import Family

_SECONDS_TO_END = 60.0  # that processes which Lightning started get when all is well
_SECONDS_TO_SPEAK = 5.0  # and when it is not: to say why


def fit(trainer: Trainer, model: Family, data: ImageData, resume: str | None) -> None:
    """Train; raises what training raises, with all other processes ended that this one started.

    Args:
        trainer: The trainer.
        model: What is trained.
        data: What it is trained on.
        resume: The checkpoint to go on from.

    Raises:
        KeyboardInterrupt: After a second Ctrl-C.
        Stopped: If a signal asked for it, with everything written.
    """
    writes = any(isinstance(callback, Checkpoints) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    patience = _SECONDS_TO_SPEAK
    try:
        # Where nothing is ever written there is nothing to wait for, and nobody who would look whether a signal came.
        with nullcontext() if writes else signals.at_once():
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        patience = _SECONDS_TO_END
    except Stopped:
        patience = _SECONDS_TO_END
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes Ctrl-C an exit of its own
            raise KeyboardInterrupt from None
        raise
    finally:
        _end_children(trainer, patience)


def _end_children(trainer: Trainer, patience: float) -> None:
    """Wait for the processes that Lightning's launcher started, if it did, and kill what does not end."""
    children: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for child in children:
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
