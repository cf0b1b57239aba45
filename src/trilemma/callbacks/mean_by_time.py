"""The mean validation loss by time."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor

from trilemma.training.diagnostics import diagnostics_of


class MeanByTime:
    """Means of the losses that validation steps report as `Diagnostics.time_loss`, in equal bins of (0, 1].

    Args:
        num_bins: How many parts.
    """

    def __init__(self, num_bins: int) -> None:
        self.num_bins = num_bins
        self._sums: Tensor | None = None  # float64 [2, num_bins]: loss, count

    def reset(self) -> None:
        """Clear the sums."""
        self._sums = None

    @torch.no_grad()
    def add(self, outputs: Any) -> None:
        """Add the losses of a validation step; steps without losses by time are skipped."""
        seen = diagnostics_of(outputs)
        if "time" not in seen or "time_loss" not in seen:
            return
        loss = seen["time_loss"].double()
        # Bins are closed on the right, up to the rounding of t = i / T.
        part = (seen["time"].double() * self.num_bins - 1e-5).ceil().long().sub(1).clamp(0, self.num_bins - 1)
        if self._sums is None:
            self._sums = torch.zeros(2, self.num_bins, dtype=loss.dtype, device=loss.device)
        self._sums[0].index_add_(0, part, loss)
        self._sums[1].index_add_(0, part, torch.ones_like(loss))

    def means(self, trainer: L.Trainer) -> dict[int, float]:
        """Compute the mean loss of each bin that any process has seen, by its number 0, 1, ...; empty where nothing was added.

        Processes add the same number of times, or none does: the sums are reduced over them here.
        """
        if self._sums is None:
            return {}
        total, count = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        return {i: total[i] / count[i] for i in range(self.num_bins) if count[i]}
