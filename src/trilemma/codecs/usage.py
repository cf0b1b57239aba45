"""Codebook usage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class CodebookUsage(Metric):
    """Counts of every code over a whole data set, summed over processes.

    A batch's perplexity is capped by its number of tokens, so the figures come from counts, never from batch means.

    Args:
        codebook_size: Number of codes K.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int, **options: Any) -> None:
        super().__init__(**options)
        self.codebook_size = codebook_size
        self.add_state("counts", default=torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, code: Tensor) -> None:
        """Count codes, int64 of any shape in 0..K-1."""
        self.counts += torch.bincount(code.flatten(), minlength=self.codebook_size)

    def compute(self) -> dict[str, Tensor]:
        """Compute statistics of all codes seen.

        Returns:
            perplexity: exp of the entropy of the code frequencies, 1 to K.
            usage: Share of the codes seen at least once.
            well_used: Share of the codes that are more frequent than 0.1 / K.
            dead: Number of codes never seen.
        """
        p = self.counts.float() / self.counts.sum()  # not every device has float64
        seen = self.counts > 0
        return {
            "perplexity": torch.exp(-torch.special.xlogy(p, p).sum()),
            "usage": seen.float().mean(),
            "well_used": (p > 0.1 / self.codebook_size).float().mean(),
            "dead": (~seen).sum().float(),
        }
