"""Watch for a generator that repeats itself."""

from __future__ import annotations

from typing import Any

import lightning as L

from trilemma.callbacks.counting import num_batches
from trilemma.callbacks.monitors.base import Monitor
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.training.diagnostics import diagnostics_of


class Collapse(Monitor):
    """Logs `train/sample_diversity`, and warns, or stops, where it stays low.

    It is the mean distance of a sample to the nearest other one of a small group, over the same of data: near 1 where samples vary as
    data do, near 0 where they are all alike. Few different samples bring it down before classes go missing, which `ModeHistogram` sees.
    Families whose `Loss.diagnostics` have no distances are skipped.

    Args:
        every_n_batches: How often it is checked; it is logged with the loss.
        min_diversity: Below it the generator is collapsed.
        patience: Number of consecutive such checks before it warns.
        stop: See `Monitor`.
    """

    def __init__(
        self, every_n_batches: int = 100, *, min_diversity: float = 0.3, patience: int = 5, stop: bool = False
    ) -> None:
        super().__init__(stop=stop)
        if every_n_batches < 1 or patience < 1 or not min_diversity >= 0.0:
            raise UserError(
                f"every_n_batches={every_n_batches} and patience={patience} must be at least 1 and min_diversity={min_diversity} "
                "not be negative in the monitor of collapse"
            )
        self.every_n_batches = every_n_batches
        self.min_diversity = min_diversity
        self.patience = patience
        self._collapsed = 0  # consecutive collapsed checks

    @property
    def state_key(self) -> str:
        """Where the count lives in a checkpoint's `callbacks`."""
        return "Collapse"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Log the diversity over all processes, and check it every few batches."""
        seen = diagnostics_of(outputs)
        if "real_nearest" not in seen or "fake_nearest" not in seen:
            return
        assert isinstance(pl_module, Family)
        means = pl_module.over_processes({name: seen[name].mean() for name in ("real_nearest", "fake_nearest")})
        diversity = means["fake_nearest"] / means["real_nearest"].clamp(min=1e-12)
        pl_module.log("train/sample_diversity", diversity)
        if num_batches(trainer) % self.every_n_batches:
            return
        value = float(diversity)
        self._collapsed = self._collapsed + 1 if value < self.min_diversity else 0
        problem = f"samples lie {value:.3f} times as far from each other as data do, below {self.min_diversity:g} for"
        problem += f" {self._collapsed * self.every_n_batches} batches"
        self.judge(trainer, problem if self._collapsed >= self.patience else None)

    def state_dict(self) -> dict[str, Any]:
        """Save the number of consecutive collapsed checks."""
        return {"collapsed": self._collapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the count."""
        self._collapsed = state_dict["collapsed"]
