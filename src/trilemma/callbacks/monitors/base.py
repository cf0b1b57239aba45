"""The base of all monitors: warn once, or stop training."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L

from trilemma.callbacks.checkpoint import FOLDER, step_checkpoints
from trilemma.callbacks.counting import num_batches
from trilemma.errors import TrainingError


class Monitor(L.Callback):
    """Watches for one failure of training.

    A problem is printed in one line on stderr when it appears, and again only after it was gone. A monitor never draws
    from training's random generators: weights are the same with and without it.

    Every process must reach the same verdict: values that differ between them are reduced first.

    Args:
        stop: End training, with the checkpoints as they are, instead of warning.
    """

    def __init__(self, *, stop: bool = False) -> None:
        self.stop = stop
        self._said = False

    def judge(self, trainer: L.Trainer, problem: str | None) -> None:
        """Warn or stop if there is a problem; None resets the warning.

        Args:
            trainer: The trainer.
            problem: What was seen, without the batch; None where all is well.

        Raises:
            TrainingError: If there is a problem and the monitor is to stop training.
        """
        if problem is None:
            self._said = False
            return
        if self.stop:
            raise stopped(trainer, problem)
        if not self._said and trainer.is_global_zero:
            print(f"WARNING: batch {num_batches(trainer)}: {problem}", file=sys.stderr, flush=True)
        self._said = True


def stopped(trainer: L.Trainer, problem: str) -> TrainingError:
    """Build the exception that ends training: what was seen, when, and the newest checkpoint."""
    checkpoints = step_checkpoints(Path(trainer.default_root_dir) / FOLDER)
    left = f"the last good checkpoint is {checkpoints[0]}" if checkpoints else "no checkpoint was written yet"
    return TrainingError(f"training stopped at batch {num_batches(trainer)}: {problem}; {left}")
