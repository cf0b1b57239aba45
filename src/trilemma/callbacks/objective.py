"""See that validations log what a sweep judges its points by, before the first batch."""

from __future__ import annotations

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from trilemma.errors import UserError


class ChecksObjective(Callback):
    """Refuses a metric that validations do not log, after one batch of Lightning's sanity check.

    Args:
        metric: Its name.

    Raises:
        UserError: In training, if there is no such metric.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare names."""
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if self.metric not in logged:
            raise UserError(
                f"optimized_metric={self.metric} is not logged in validation; there is: {', '.join(logged)}"
            )
