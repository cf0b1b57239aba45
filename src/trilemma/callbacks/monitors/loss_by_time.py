"""Log the validation loss by diffusion time."""

from __future__ import annotations

from typing import Any

import lightning as L

from trilemma.callbacks.mean_by_time import MeanByTime
from trilemma.callbacks.monitors.base import Monitor
from trilemma.errors import UserError


class TimeLoss(Monitor):
    """Logs the validation loss by time, `val/loss_t00` for t in (0, 0.1] to `val/loss_t09`; warns, or stops, where one rises.

    The mean loss can fall while that at one end of the chain diverges. Families whose `validation_step` gives no
    `Diagnostics.time_loss` are skipped.

    Args:
        num_bins: Equal parts of (0, 1].
        max_rise: Largest ratio of a bin's loss to its least loss so far; more than 1.
        stop: See `Monitor`.
    """

    def __init__(self, num_bins: int = 10, *, max_rise: float = 2.0, stop: bool = False) -> None:
        super().__init__(stop=stop)
        if not 1 <= num_bins <= 100 or not max_rise > 1:
            raise UserError(
                f"num_bins={num_bins} must lie in 1..100 and max_rise={max_rise} above 1 in the monitor of the loss by time"
            )
        self.num_bins = num_bins
        self.max_rise = max_rise
        self._mean = MeanByTime(num_bins)
        self._losses: dict[int, float] = {}  # least loss of each bin that was seen
        self._least: dict[int, float] = {}

    @property
    def state_key(self) -> str:
        """Where the least losses live in a checkpoint's `callbacks`; they belong to one number of parts."""
        return f"TimeLoss{self.num_bins}"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the sums."""
        self._mean.reset()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Add the losses of a batch."""
        self._mean.add(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the means over the whole set, over all processes."""
        self._losses = self._mean.means(trainer)
        pl_module.log_dict({f"val/loss_t{i:02d}": loss for i, loss in self._losses.items()}, sync_dist=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check whether a loss has risen."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not self._losses:
            return
        problem = None
        for i, loss in self._losses.items():
            least = self._least.setdefault(i, loss)
            if loss <= least:
                self._least[i] = loss
            elif not loss <= self.max_rise * least and problem is None:
                start, stop = i / self.num_bins, (i + 1) / self.num_bins
                problem = f"the validation loss at t in ({start:g}, {stop:g}] is {loss:.3g} and was {least:.3g} before"
        self.judge(trainer, problem)

    def state_dict(self) -> dict[str, Any]:
        """Save the least loss of each bin."""
        return {"least": {str(i): loss for i, loss in self._least.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the least losses."""
        self._least = {int(i): loss for i, loss in state_dict["least"].items()}
