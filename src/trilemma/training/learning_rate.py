"""Learning-rate schedules, stepped once a batch."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class WarmupCosine(LambdaLR):
    """Linear warm-up, then half a cosine down to a fraction of the peak.

    Args:
        optimizer: Whose learning rate is the peak.
        num_steps: Length of the run in batches.
        num_warmup_steps: Batches until the peak.
        final_fraction: Learning rate at the end, relative to the peak.
    """

    def __init__(
        self, optimizer: Optimizer, *, num_steps: int, num_warmup_steps: int = 100, final_fraction: float = 0.02
    ) -> None:
        def factor(step: int) -> float:
            if step < num_warmup_steps:
                return (step + 1) / num_warmup_steps
            progress = min(1.0, (step - num_warmup_steps) / max(1, num_steps - num_warmup_steps))
            return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))

        super().__init__(optimizer, factor)
