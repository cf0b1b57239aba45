"""How far a run is."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from trilemma.callbacks.counting import num_batches, planned_batches

_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 30.0


class BatchProgress(TQDMProgressBar):
    """Lightning's bar in a terminal; elsewhere (a log file, SLURM) a line every half minute, and one at the end.

    Metrics are read only when they are shown, so that a GPU is not waited for at every batch.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=int(sys.stdout.isatty()))
        self._started_at = self._shown_at = 0.0
        self._start = 0

    def on_train_start(self, *args: Any) -> None:
        """Start at the batch that a checkpoint was written at, from where speed and time left are reckoned."""
        Tqdm.monitor_interval = 0  # no thread that competes with training
        super().on_train_start(*args)
        self._start = num_batches(self.trainer)
        bar = self.train_progress_bar
        bar.n, bar.initial, bar.total = self._start, self._start, planned_batches(self.trainer)
        self._started_at = self._shown_at = time.monotonic()

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Go on: a run is one epoch."""

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Show where training stands, at most a few times a second."""
        if time.monotonic() - self._shown_at >= (_REFRESH_SECONDS if self.refresh_rate else _LINE_SECONDS):
            self._show(trainer)

    def on_train_end(self, *args: Any) -> None:
        """Show the end."""
        self._show(self.trainer)
        super().on_train_end(*args)

    def _show(self, trainer: L.Trainer) -> None:
        self._shown_at = time.monotonic()
        if not trainer.is_global_zero:
            return
        done, of = num_batches(trainer), planned_batches(trainer)
        if self.refresh_rate:
            self.train_progress_bar.n = done
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, trainer.lightning_module))
        else:
            words = " ".join(f"{name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
            speed = (done - self._start) / max(self._shown_at - self._started_at, 1e-9)
            print(f"{done}{f'/{of}' if of else ''} {words} {speed:.1f} it/s", flush=True)
