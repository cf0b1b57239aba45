"""When a run is written down, and what is kept."""

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
    """Writes `checkpoints/step-00001000.ckpt` as training goes on, and `best.ckpt`, under the trainer's root folder.

    `last.ckpt` is a link to the newest.

    A resumed run equals the uninterrupted one bit for bit. So checkpoints are written at the end of a batch that completes
    an optimiser step, after the validation that belongs to it.

    A request to stop (Ctrl-C, or SIGUSR1, SIGUSR2 or SIGTERM of a cluster) is heeded at the end of such a batch, on all
    processes at the same one. A validation does not hold it up, however long it takes: what is written then says that the
    validation is still to be done, and the resumed run does it from its beginning, drawing the same random numbers. Only
    the validation after the last batch is always finished, for the run ends with it. A second Ctrl-C does not wait. Any other
    exception writes nothing: the periodic checkpoint before it stands.

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
        self._stop = 0  # the status that all processes know they were asked to stop with
        self._stopping = False  # and everything is written
        self._validation_due = False  # the checkpoint being written, or resumed from, lacks its validation

    @property
    def state_key(self) -> str:
        """Where the best score lives in a checkpoint's `callbacks`."""
        return "Checkpoints"

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask the family which metric decides, before a resumed run's state is taken up; listen for requests to stop."""
        if self.monitor == "family":
            self.monitor, self.mode = getattr(pl_module, "monitor", None) or (None, self.mode)
        if stage == "fit":
            self.requests.begin(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Clear what a killed process left."""
        if trainer.is_global_zero and _folder(trainer).is_dir():
            remove_leftovers(_folder(trainer))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop where that was asked for since the program started; do the validation that a stop had put off."""
        self._stop, self._stopping, self._due = self.requests.asked_now(trainer), False, False
        if self._stop:  # nothing has been done since the checkpoint that was resumed, if any
            raise Stopped(self._stop)
        if self._validation_due:
            self._validation_due = False
            # It reads the progress of loops to find out where it was, and has no public way to be told.
            trainer.fit_loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.reset_on_run()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Stop where that was asked for: the last batch is written and its metrics are logged."""
        if self._stopping:
            raise Stopped(self._stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write where it is time, unless a validation comes first."""
        self._stop = self._stop or self.requests.asked(trainer)
        self._due = self._due or num_batches(trainer) % self.every_n_batches == 0
        if not _validation_follows(trainer):
            self._write_if_due(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do not begin a validation where a stop was asked for."""
        self._put_off(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Do not go on with it either."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop = self._stop or self.requests.asked(trainer)
            self._put_off(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the score; write the best, and what waited for the validation."""
        if trainer.state.fn != "fit":
            return
        improved = self._improved(trainer)
        if trainer.sanity_checking:
            return
        if improved:
            self._save(trainer, Path(self.best_model_path))
        self._write_if_due(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the end of the run."""
        if self._written != num_batches(trainer):
            self._write(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen no more."""
        self.requests.end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Listen no more."""
        self.requests.end()

    def state_dict(self) -> dict[str, Any]:
        """The best score so far and where it was reached; whether the last batch's validation is still to be done."""
        return {
            "monitor": self.monitor,
            "best_score": self.best_score,
            "best_batch": self.best_batch,
            "validation_due": self._validation_due,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, unless another metric decides now."""
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
        # Writing takes all processes, and a metric that was not reduced differs between them: the first one decides.
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
        """Stop before a validation, or in the midst of it: to be done by the run that goes on, unless nothing else is left of it."""
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
            # Where a run went back to an older checkpoint, those after it belong to a future that did not happen.
            future = [past.pop(0) for path in tuple(past) if batch_of(path) > self._written]
            for stale in future + past[self.keep_last :]:
                stale.unlink(missing_ok=True)

    def _save(self, trainer: L.Trainer, path: Path) -> None:
        """Write a file; where the first process cannot, the others end with it."""
        problem: UserError | None = None
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except UserError as error:
            if trainer.world_size == 1:
                raise
            problem = error
            trainer.strategy.barrier()  # where the others wait for the file
        if trainer.world_size > 1 and trainer.strategy.broadcast(problem is not None):
            raise problem or SystemExit(REFUSED)


def step_checkpoints(folder: Path) -> list[Path]:
    """The periodic checkpoints of a folder, newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdigit()]
    return sorted(found, key=batch_of, reverse=True)


def batch_of(path: Path) -> int:
    """After how many batches a periodic checkpoint was written."""
    return int(path.stem.removeprefix("step-"))


def _point(link: Path, name: str) -> None:
    """Let `link` stand for its neighbour `name`; at no moment does it stand for nothing."""
    temporary = link.with_name(f".tmp-{link.name}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(name)
    temporary.replace(link)


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / FOLDER


def _validation_follows(trainer: L.Trainer) -> bool:
    # Only Lightning's loop knows all the rules, and it has no public way to ask.
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def _completes_a_step(trainer: L.Trainer) -> bool:
    assert isinstance(trainer.lightning_module, Family)
    return trainer.lightning_module.completes_update()


def _is_last_batch(trainer: L.Trainer) -> bool:
    loop = trainer.fit_loop.epoch_loop
    return loop._num_ready_batches_reached() or _is_max_limit_reached(loop.global_step, loop.max_steps)
