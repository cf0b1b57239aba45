"""`Trainer.fit` in all processes of the run, none of which outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from lightning import Trainer

from trilemma.callbacks.checkpoint import Checkpoints
from trilemma.data.base import ImageData
from trilemma.distributed import signals
from trilemma.distributed.job import place
from trilemma.errors import FAILED, Stopped, UserError
from trilemma.models.base import Family

_SECONDS_TO_END = 60.0  # that child processes get to end after success
_SECONDS_TO_SPEAK = 5.0  # that they get after a failure, to print the reason
_PARENT_DIED = 1  # PR_SET_PDEATHSIG of prctl(2)


def fit(trainer: Trainer, model: Family, data: ImageData, resume: str | None) -> None:
    """Train; raises what training raises, after ending all other processes that this one started.

    Args:
        trainer: The trainer.
        model: The model to train.
        data: Its data.
        resume: The checkpoint to go on from.

    Raises:
        UserError: If Lightning would resume from a file that is not ours.
        KeyboardInterrupt: After a second Ctrl-C.
        Stopped: If a signal asked for it, with everything written.
    """
    _refuse_foreign_checkpoints(trainer, resume)
    if place().started_by == "lightning":
        _end_with_parent()
    writes = any(isinstance(callback, Checkpoints) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    patience = _SECONDS_TO_SPEAK
    try:
        # Without checkpoints no callback checks for signals, and there is nothing to write: stop at once.
        with nullcontext() if writes else signals.at_once():
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
        patience = _SECONDS_TO_END
    except Stopped:
        patience = _SECONDS_TO_END
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into SystemExit
            raise KeyboardInterrupt from None
        raise
    finally:
        _end_children(trainer, patience)


def _refuse_foreign_checkpoints(trainer: Trainer, resume: str | None) -> None:
    """Refuse checkpoints of Lightning's own requeueing, which it would load in a SLURM job without a given one."""
    if resume is None and (found := next(iter(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt")), None)):
        raise UserError(f"{found} was not written by Trilemma, and Lightning would resume from it: move it elsewhere")


def _end_with_parent() -> None:
    """End this process when its parent dies: else it would hold its GPU for ever, waiting for the killed process."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PARENT_DIED, signal.SIGKILL)
        if parent == 1:  # the parent died before
            raise SystemExit(FAILED)


def _end_children(trainer: Trainer, patience: float) -> None:
    """Wait for the processes that Lightning's launcher started, and kill those that do not end."""
    children: list[subprocess.Popen[bytes]] = getattr(trainer.strategy.launcher, "procs", [])
    for child in children:
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
