"""A picture of the validation loss by diffusion time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.mean_by_time import MeanByTime
from trilemma.callbacks.pictures.drawing import publish
from trilemma.errors import UserError
from trilemma.figures.loss_by_time import Curve, loss_by_time_picture

_MAX_CURVES = 400  # beyond this, every second curve is dropped


class LossByTime(L.Callback):
    """Draws the validation loss against time, the newest curve over earlier ones: `loss_by_time/step-00001000.png`.

    Families whose `validation_step` gives no `Diagnostics.time_loss` are skipped. The monitor `TimeLoss` watches the
    same numbers.

    Args:
        num_bins: Equal parts of (0, 1], one point each.
        max_earlier: So many earlier curves are drawn, spread over the run.
    """

    def __init__(self, num_bins: int = 25, *, max_earlier: int = 8) -> None:
        if not 1 <= num_bins <= 1000 or max_earlier < 0:
            raise UserError(
                f"num_bins={num_bins} must lie in 1..1000 and max_earlier={max_earlier} not be negative in the loss by time"
            )
        self.num_bins = num_bins
        self.max_earlier = max_earlier
        self._mean = MeanByTime(num_bins)
        self._curves: dict[int, Curve] = {}

    @property
    def state_key(self) -> str:
        """Where the curves live in a checkpoint's `callbacks`."""
        return "LossByTime"

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reset the sums."""
        self._mean.reset()

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Add the losses of a batch."""
        self._mean.add(outputs)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the losses of all processes."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        means = self._mean.means(trainer)
        if not means:
            return
        curve = tuple(((i + 0.5) / self.num_bins, mean) for i, mean in means.items())
        step = num_batches(trainer)
        self._curves = {batch: points for batch, points in self._curves.items() if batch < step}
        shown = {batch: self._curves[batch] for batch in _spread(sorted(self._curves), self.max_earlier)}
        if trainer.is_global_zero and any(math.isfinite(loss) for _, loss in curve):
            publish(trainer, "loss_by_time", loss_by_time_picture({**shown, step: curve}))
        self._curves[step] = curve
        if len(self._curves) > _MAX_CURVES:
            self._curves = dict(list(self._curves.items())[::2])

    def state_dict(self) -> dict[str, Any]:
        """Save the curves so far."""
        return {"curves": {str(step): [list(point) for point in curve] for step, curve in self._curves.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the curves."""
        self._curves = {int(step): tuple((t, y) for t, y in curve) for step, curve in state_dict["curves"].items()}


def _spread(steps: Sequence[int], num: int) -> list[int]:
    """Choose at most `num` of some rising steps, evenly spaced in their logarithms: a loss falls fastest at first."""
    if len(steps) <= num or num == 0:
        return list(steps)[:num]
    logs = [math.log(step) for step in steps]
    wanted = [logs[0] + (logs[-1] - logs[0]) * i / max(1, num - 1) for i in range(num)]
    return [steps[i] for i in sorted({min(range(len(logs)), key=lambda i: abs(logs[i] - log)) for log in wanted})]
