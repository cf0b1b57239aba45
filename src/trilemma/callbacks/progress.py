"""A progress bar for one long pass."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from trilemma.callbacks.counting import num_batches, planned_batches

_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 30.0


class BatchProgress(ProgressBar):
    """Shows batches done of batches planned, the metrics logged for the bar, the speed and the time left.

    In a terminal it is a bar; elsewhere (a log file, SLURM) a line every half minute. Metrics are read only when they
    are shown, so that a GPU is not waited for at every batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._console = Console()
        self._enabled = True
        self._progress: Progress | None = None
        self._shown_at = 0.0
        self._started_at = 0.0
        self._start = 0
        self._total: int | None = None

    def disable(self) -> None:
        """Show nothing; on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            (self._progress.console if self._progress else self._console).print(*args)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start at the batch that a checkpoint was written at."""
        if not self._enabled:
            return
        self._start, self._total = num_batches(trainer), planned_batches(trainer)
        self._started_at = self._shown_at = time.monotonic()
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.completed:.0f}/{task.total:.0f}" if self._total else "{task.completed:.0f}"),
                TextColumn("{task.fields[metrics]}"),
                _Speed(),
                TimeRemainingColumn(),
                console=self._console,
                auto_refresh=False,  # no thread that competes with training
                expand=True,
            )
            self._progress.add_task("Training", total=self._total, completed=self._start, metrics="")
            self._progress.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show where training stands, at most a few times a second."""
        wait = _REFRESH_SECONDS if self._progress else _LINE_SECONDS
        if self._enabled and time.monotonic() - self._shown_at >= wait:
            self._show(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that training waits."""
        self._describe("Validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that training goes on."""
        self._describe("Training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the end."""
        if self._enabled:
            self._show(trainer)
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _show(self, trainer: L.Trainer) -> None:
        done = num_batches(trainer)
        metrics = " ".join(f"{name.split('/', 1)[-1]} {value}" for name, value in self._metrics(trainer).items())
        now = time.monotonic()
        self._shown_at = now
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done, metrics=metrics, refresh=True)
            return
        speed = (done - self._start) / max(now - self._started_at, 1e-9)
        of = f"/{self._total}" if self._total else ""
        print(f"{done}{of} {metrics} {speed:.1f} it/s", flush=True)

    def _metrics(self, trainer: L.Trainer) -> dict[str, str]:
        return {name: f"{float(value):.4g}" for name, value in trainer.progress_bar_metrics.items()}

    def _describe(self, text: str) -> None:
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=text, refresh=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} it/s")
