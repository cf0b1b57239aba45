"""Standard errors of estimates that are no means, by leaving out groups."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def jackknife_stderr(estimate: Callable[[Tensor], float], features: Tensor, *, num_groups: int = 10) -> float:
    """Delete-a-group jackknife: sqrt((g - 1) / g * sum (theta_i - mean)^2), theta_i without group i.

    Unlike the bootstrap it repeats no sample, which a distance between sets would see as a narrower set. Efron and Stein
    1981, "The jackknife estimate of variance"; on average the estimate is a little too large.

    Args:
        estimate: The quantity, of features [n, d].
        features: [N, d] in an order that has nothing to do with their values; N >= 3.
        num_groups: g, at most N.

    Raises:
        ValueError: If there are fewer than three features.
    """
    if len(features) < 3:
        raise ValueError(f"need at least 3 features to leave some out, got {len(features)}")
    groups = min(num_groups, len(features))
    positions = torch.arange(len(features))
    left = [estimate(features[positions % groups != group]) for group in range(groups)]
    values = torch.tensor(left, dtype=torch.float64)
    return float(((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt())


def share_stderr(share: float, num: int) -> float:
    """Standard error sqrt(p (1 - p) / n) of a share among n independent draws."""
    return math.sqrt(max(0.0, share * (1 - share)) / num)
