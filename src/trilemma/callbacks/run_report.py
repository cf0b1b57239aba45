"""A page about the run, kept up to date in its directory."""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from trilemma.atomic import atomic_write_text
from trilemma.callbacks.counting import num_batches, planned_batches
from trilemma.callbacks.run_page import run_page
from trilemma.errors import UserError

FILE = "report.html"
_MAX_SHARE = 0.01  # of the time of a run


class RunReport(L.Callback):
    """Writes `report.html`, one file that needs no other, after validations and at the end.

    A page that took t seconds to write is not written again for 100 t: what the pages cost while a run goes on stays
    below a hundredth of it. What the file system refuses is a warning; training goes on.

    Args:
        min_seconds: Between two pages, at least.
    """

    def __init__(self, min_seconds: float = 60.0) -> None:
        if min_seconds < 0:
            raise UserError(f"min_seconds={min_seconds} of the run report must not be negative")
        self.min_seconds = min_seconds
        self._not_before = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock: what is over within a minute is told once, at its end."""
        self._not_before = time.monotonic() + self.min_seconds

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write, unless it was done a moment ago."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and time.monotonic() >= self._not_before:
            self._write(trainer, "running")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the end; the last checkpoint is there by now."""
        if stage == "fit" and trainer.is_global_zero:
            planned = planned_batches(trainer)
            complete = planned is None or num_batches(trainer) >= planned
            self._write(trainer, "finished" if complete else "stopped")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Write how far the run came."""
        if trainer.state.fn == "fit":
            self._write(trainer, "stopped")

    def _write(self, trainer: L.Trainer, state: str) -> None:
        if not trainer.is_global_zero:
            return
        start = time.monotonic()
        folder = Path(trainer.default_root_dir)
        planned = planned_batches(trainer)
        done = f"{num_batches(trainer)} batches" if planned is None else f"{num_batches(trainer)} of {planned} batches"
        status = f"{state.capitalize()}: {done}; written {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
        monitor = getattr(trainer.lightning_module, "monitor", None)
        try:
            atomic_write_text(folder / FILE, run_page(folder, status=status, monitor=monitor))
        except (OSError, UserError) as error:
            rank_zero_warn(f"the run report was not written: {error}")
        end = time.monotonic()
        self._not_before = end + max(self.min_seconds, (end - start) / _MAX_SHARE)
