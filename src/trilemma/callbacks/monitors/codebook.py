"""Dead codes."""

from __future__ import annotations

import lightning as L

from trilemma.callbacks.monitors.base import Monitor
from trilemma.errors import UserError

_USAGE = "val/codebook_usage"


class CodebookUse(Monitor):
    """Warns, or stops, where little of a codebook is used over the validation set.

    Families that log no `val/codebook_usage` (the share of the codes seen at least once) are skipped.

    Args:
        min_usage: Least share of the codes, in [0, 1].
        stop: See `Monitor`.
    """

    def __init__(self, min_usage: float = 0.5, *, stop: bool = False) -> None:
        super().__init__(stop=stop)
        if not 0.0 <= min_usage <= 1.0:
            raise UserError(f"min_usage={min_usage} of the codebook monitor must lie in [0, 1]")
        self.min_usage = min_usage

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the codebook usage that the family logged."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or _USAGE not in trainer.callback_metrics:
            return
        usage = float(trainer.callback_metrics[_USAGE])
        few = not usage >= self.min_usage
        self.judge(trainer, f"{usage:.1%} of the codes are in use, below {self.min_usage:.0%}" if few else None)
