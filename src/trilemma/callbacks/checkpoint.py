"""When a run is written down, and what is kept."""

from __future__ import annotations

import math
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from trilemma.atomic import remove_leftovers
from trilemma.callbacks.counting import num_batches
from trilemma.errors import UserError

FOLDER = "checkpoints"
LAST = "last.ckpt"


class Checkpoints(Checkpoint):
    """Writes `checkpoints/step-00001000.ckpt` as training goes on, and `best.ckpt`, under the trainer's root folder.

    `last.ckpt` is a link to the newest.

    Checkpoints are written at the end of a batch, and after the validation that belongs to it, never in the midst of
    either: only then does a resumed run equal the uninterrupted one. So Ctrl-C and SIGTERM first let the batch end (a
    second Ctrl-C does not wait), and any other exception writes nothing: the periodic checkpoint before it stands.

    Steps are batches, not optimiser steps.

    Args:
        every_n_batches: How often to write.
        keep_last: How many to keep, newest first; at least 2 survive a damaged one.
        monitor: Validation metric that decides `best.ckpt`; "family" takes the model's own, None writes none.
        mode: Whether the best is the least or the greatest; with "family" the model says so too.
    """

    def __init__(
        self,
        every_n_batches: int = 1000,
        *,
        keep_last: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        if every_n_batches < 1 or keep_last < 1:
            raise UserError(f"every_n_batches={every_n_batches} and keep_last={keep_last} must be at least 1")
        if mode not in ("min", "max"):
            raise UserError(f"mode={mode} must be 'min' or 'max'")
        self.every_n_batches = every_n_batches
        self.keep_last = keep_last
        self.monitor = monitor
        self.mode = mode
        self.best_score: float | None = None
        self.best_batch: int | None = None
        self.best_model_path = ""  # read by `Trainer.validate(ckpt_path="best")`
        self._due = False
        self._written: int | None = None  # the batch of the newest checkpoint
        self._interrupted = False  # Ctrl-C was pressed
        self._stopping = False  # and all processes know
        self._previous_handler: Any = None

    @property
    def state_key(self) -> str:
        """Where the best score lives in a checkpoint's `callbacks`."""
        return "Checkpoints"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask the family which metric decides, before a resumed run's state is taken up."""
        if self.monitor == "family":
            self.monitor, self.mode = getattr(pl_module, "monitor", None) or (None, self.mode)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clear what a killed process left."""
        if trainer.is_global_zero and _folder(trainer).is_dir():
            remove_leftovers(_folder(trainer))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for Ctrl-C: from here on there is something to write down."""
        self._interrupted = self._stopping = False
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._on_interrupt)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop where Ctrl-C was pressed: the last batch is written and its metrics are logged."""
        if self._stopping:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write where it is time, unless a validation comes first."""
        self._due = self._stop_asked(trainer) or num_batches(trainer) % self.every_n_batches == 0
        if self._due and not _validation_follows(trainer):
            self._write(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the score; write the best, and what waited for the validation."""
        if trainer.state.fn != "fit":
            return
        improved = self._improved(trainer)
        if trainer.sanity_checking:
            return
        if improved:
            trainer.save_checkpoint(self.best_model_path, weights_only=False)
        if self._stop_asked(trainer) or self._due:
            self._write(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the end of the run."""
        if self._written != num_batches(trainer):
            self._write(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        self._stop_listening()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back."""
        self._stop_listening()

    def state_dict(self) -> dict[str, Any]:
        """The best score so far and where it was reached."""
        return {"monitor": self.monitor, "best_score": self.best_score, "best_batch": self.best_batch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, unless another metric decides now."""
        if state_dict["monitor"] == self.monitor:
            self.best_score = state_dict["best_score"]
            self.best_batch = state_dict["best_batch"]

    def _improved(self, trainer: L.Trainer) -> bool:
        if self.monitor is None:
            return False
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UserError(f"checkpoint.monitor={self.monitor} is not logged in validation; there is: {known}")
        if trainer.sanity_checking:
            return False
        # Writing takes all processes, and a metric that was not reduced differs between them: the first one decides.
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        if math.isnan(score) or (self.best_score is not None and not self._better(score, self.best_score)):
            return False
        self.best_score, self.best_batch = score, num_batches(trainer)
        self.best_model_path = str(_folder(trainer) / "best.ckpt")
        return True

    def _better(self, score: float, than: float) -> bool:
        return score < than if self.mode == "min" else score > than

    def _write(self, trainer: L.Trainer) -> None:
        self._due = False
        self._written = num_batches(trainer)
        trainer.save_checkpoint(_folder(trainer) / f"step-{self._written:08d}.ckpt", weights_only=False)
        if trainer.is_global_zero:
            _point(_folder(trainer) / LAST, f"step-{self._written:08d}.ckpt")
            past = step_checkpoints(_folder(trainer))
            # Where a run went back to an older checkpoint, those after it belong to a future that did not happen.
            future = [past.pop(0) for path in tuple(past) if _step(path) > self._written]
            for stale in future + past[self.keep_last :]:
                stale.unlink(missing_ok=True)

    def _stop_asked(self, trainer: L.Trainer) -> bool:
        asked = self._interrupted or trainer.received_sigterm
        if trainer.world_size > 1:  # a signal reaches the processes at different batches, and they write together
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        self._stopping = asked and not trainer.received_sigterm  # Lightning itself stops on SIGTERM
        return asked

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        print("\nStopping after this batch and its checkpoint; press Ctrl-C again to stop at once.", file=sys.stderr)

    def _stop_listening(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None


def step_checkpoints(folder: Path) -> list[Path]:
    """The periodic checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdigit()]
    return sorted(found, key=_step, reverse=True)


def _point(link: Path, name: str) -> None:
    """Let `link` stand for its neighbour `name`; at no moment does it stand for nothing."""
    temporary = link.with_name(f".tmp-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _validation_follows(trainer: L.Trainer) -> bool:
    # Only Lightning's loop knows all the rules, and it has no public way to ask.
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
