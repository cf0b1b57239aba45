"""Watch for a discriminator that has won."""

from __future__ import annotations

from typing import Any

import lightning as L

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.monitors.base import Monitor
from trilemma.errors import UserError
from trilemma.training.diagnostics import diagnostics_of


class DiscriminatorGap(Monitor):
    """Logs `train/discriminator_gap`, and warns, or stops, where it stays near 1.

    The gap is the mean of D on data minus that on samples, D the sigmoid of the scores: 0 where the discriminator cannot
    tell them apart, 1 where it always can and the generator learns nothing. Families whose `Loss.diagnostics` have no
    scores are skipped.

    Args:
        every_n_batches: How often it is checked; it is logged with the loss.
        max_gap: Above it the discriminator is saturated.
        patience: Number of consecutive saturated checks before it warns.
        stop: See `Monitor`.
    """

    def __init__(
        self, every_n_batches: int = 100, *, max_gap: float = 0.95, patience: int = 5, stop: bool = False
    ) -> None:
        super().__init__(stop=stop)
        if every_n_batches < 1 or patience < 1 or not -1.0 <= max_gap <= 1.0:
            raise UserError(
                f"every_n_batches={every_n_batches} and patience={patience} must be at least 1 and max_gap={max_gap} lie in "
                "[-1, 1] in the monitor of the discriminator"
            )
        self.every_n_batches = every_n_batches
        self.max_gap = max_gap
        self.patience = patience
        self._saturated = 0  # consecutive saturated checks

    @property
    def state_key(self) -> str:
        """Where the count lives in a checkpoint's `callbacks`."""
        return "DiscriminatorGap"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Log the gap, and check it every few batches."""
        seen = diagnostics_of(outputs)
        if "real_score" not in seen or "fake_score" not in seen:
            return
        gap = seen["real_score"].float().sigmoid().mean() - seen["fake_score"].float().sigmoid().mean()
        pl_module.log("train/discriminator_gap", gap)
        if num_batches(trainer) % self.every_n_batches:
            return
        value = float(trainer.strategy.reduce(gap, reduce_op="mean"))
        self._saturated = self._saturated + 1 if value > self.max_gap else 0
        problem = f"the discriminator tells data from samples with a gap of {value:.3f}, above {self.max_gap:g} for"
        problem += f" {self._saturated * self.every_n_batches} batches"
        self.judge(trainer, problem if self._saturated >= self.patience else None)

    def state_dict(self) -> dict[str, Any]:
        """Save the number of consecutive saturated checks."""
        return {"saturated": self._saturated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the count."""
        self._saturated = state_dict["saturated"]
