"""Write checkpoints of a run, and delete old ones."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.loops.utilities import _is_max_limit_reached

from trilemma.atomic import remove_leftovers
from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.preemption import StopRequests
from trilemma.errors import REFUSED, Stopped, UserError
from trilemma.models.base import Family

FOLDER = "checkpoints"
LAST = "last.ckpt"


class Checkpoints(Checkpoint):
    """Writes `checkpoints/step-00001000.ckpt` during training, and `best.ckpt`, under the trainer's root folder.

    `last.ckpt` is a link to the newest.

    A resumed run equals the uninterrupted one bit for bit. So checkpoints are written at the end of a batch that completes
    an optimiser step, after the validation that belongs to it.

    A request to stop (Ctrl-C, or SIGUSR1, SIGUSR2 or SIGTERM of a cluster) is obeyed at the end of such a batch, on all
    processes at the same one. A long validation does not delay it: the checkpoint records that the validation is due, and the
    resumed run repeats it from its beginning with the same random numbers. Only the validation after the last batch is always
    finished, since the run ends with it. A second Ctrl-C stops at once. Any other exception writes nothing: the last
    periodic checkpoint remains.

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
        self.requests = StopRequests()
        self._due = False
        self._written: int | None = None  # the batch of the newest checkpoint
        self._stop = 0  # exit status that all processes agreed to stop with; 0 for none
        self._stopping = False  # whether everything is written and training stops
        self._validation_due = False  # the checkpoint being written, or resumed from, lacks its validation

    @property
    def state_key(self) -> str:
        """Where the best score lives in a checkpoint's `callbacks`."""
        return "Checkpoints"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask the family for its monitored metric, before a resumed state is loaded; listen for signals to stop."""
        if self.monitor == "family":
            self.monitor, self.mode = getattr(pl_module, "monitor", None) or (None, self.mode)
        if stage == "fit":
            self.requests.begin(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove temporary files of a killed process."""
        if trainer.is_global_zero and _folder(trainer).is_dir():
            remove_leftovers(_folder(trainer))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if a signal came since the program started; run the validation that an earlier stop put off."""
        self._stop, self._stopping, self._due = self.requests.asked_now(trainer), False, False
        if self._stop:  # nothing was trained since the resumed checkpoint, if any
            raise Stopped(self._stop)
        if self._validation_due:
            self._validation_due = False
            # Lightning infers from the loops' progress where it was, and offers no public method to set it.
            trainer.fit_loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset_on_run()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop if a signal asked to, after the last batch is written and its metrics are logged."""
        if self._stopping:
            raise Stopped(self._stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write when due, unless a validation comes first."""
        self._stop = self._stop or self.requests.asked(trainer)
        self._due = self._due or num_batches(trainer) % self.every_n_batches == 0
        if not _validation_follows(trainer):
            self._write_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop instead of beginning a validation, if a signal asked to."""
        self._put_off(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop in the midst of a validation, if a signal asked to."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop = self._stop or self.requests.asked(trainer)
            self._put_off(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the score; write the best checkpoint, and the one that waited for the validation."""
        if trainer.state.fn != "fit":
            return
        improved = self._improved(trainer)
        if trainer.sanity_checking:
            return
        if improved:
            self._save(trainer, Path(self.best_model_path))
        self._write_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the last checkpoint."""
        if self._written != num_batches(trainer):
            self._write(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Stop listening for signals."""
        self.requests.end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Stop listening for signals."""
        self.requests.end()

    def state_dict(self) -> dict[str, Any]:
        """Save the best score and its batch, and whether the last batch's validation is still to be run."""
        return {
            "monitor": self.monitor,
            "best_score": self.best_score,
            "best_batch": self.best_batch,
            "validation_due": self._validation_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the best score, unless another metric is monitored now."""
        self._validation_due = state_dict.get("validation_due", False)
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
        # All processes must agree to write, and an unreduced metric differs between them: rank 0 decides.
        score = float(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        if math.isnan(score) or (self.best_score is not None and not self._better(score, self.best_score)):
            return False
        self.best_score, self.best_batch = score, num_batches(trainer)
        self.best_model_path = str(_folder(trainer) / "best.ckpt")
        return True

    def _better(self, score: float, than: float) -> bool:
        return score < than if self.mode == "min" else score > than

    def _write_if_due(self, trainer: L.Trainer) -> None:
        if (self._due or self._stop) and _completes_a_step(trainer):
            self._write(trainer)
            self._stopping = bool(self._stop)

    def _put_off(self, trainer: L.Trainer) -> None:
        """Stop before or in a validation, which the resumed run then repeats, unless this is the run's last batch."""
        if self._stop and not trainer.sanity_checking and _completes_a_step(trainer) and not _is_last_batch(trainer):
            self._validation_due = True
            self._write(trainer)
            self._validation_due = False
            raise Stopped(self._stop)

    def _write(self, trainer: L.Trainer) -> None:
        self._due = False
        self._written = num_batches(trainer)
        self._save(trainer, _folder(trainer) / f"step-{self._written:08d}.ckpt")
        if trainer.is_global_zero:
            _point(_folder(trainer) / LAST, f"step-{self._written:08d}.ckpt")
            past = step_checkpoints(_folder(trainer))
            # A run that resumed from an older checkpoint discards the newer ones of its previous course.
            future = [past.pop(0) for path in tuple(past) if batch_of(path) > self._written]
            for stale in future + past[self.keep_last :]:
                stale.unlink(missing_ok=True)

    def _save(self, trainer: L.Trainer, path: Path) -> None:
        """Write a file; where rank 0 cannot, the others end with it."""
        problem: UserError | None = None
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except UserError as error:
            if trainer.world_size == 1:
                raise
            problem = error
            trainer.strategy.barrier()  # the others wait for the file here
        if trainer.world_size > 1 and trainer.strategy.broadcast(problem is not None):
            raise problem or SystemExit(REFUSED)


def step_checkpoints(folder: Path) -> list[Path]:
    """List the periodic checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdigit()]
    return sorted(found, key=batch_of, reverse=True)


def batch_of(path: Path) -> int:
    """Parse the number of batches after which a periodic checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def _point(link: Path, name: str) -> None:
    """Point the link `link` to its neighbour `name`, atomically."""
    temporary = link.with_name(f".tmp-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _validation_follows(trainer: L.Trainer) -> bool:
    # Only Lightning's loop knows when it validates, and it offers no public method for it.
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _completes_a_step(trainer: L.Trainer) -> bool:
    assert isinstance(trainer.lightning_module, Family)
    return trainer.lightning_module.completes_update()


def _is_last_batch(trainer: L.Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    return loop._num_ready_batches_reached() or _is_max_limit_reached(loop.global_step, loop.max_steps)
