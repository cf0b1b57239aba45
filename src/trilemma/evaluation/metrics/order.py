"""An order of features that depends on nothing but their values."""

from __future__ import annotations

import torch
from torch import Tensor


def content_order(features: Tensor) -> Tensor:
    """Positions that sort features by their values, first column first.

    Samples come in the order of their batches, ranks or labels. What picks some of them by position picks from this
    order instead, so that the same images give the same number however they came.

    Args:
        features: [N, d].

    Returns:
        int64 [N].
    """
    rank: Tensor = torch.unique(features, dim=0, return_inverse=True)[1]
    return rank.argsort(stable=True)
