"""How often each class is drawn: mode coverage in label space."""

from __future__ import annotations

import torch
from torch import Tensor


def class_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Number of images of each class, int64 [K].

    Raises:
        ValueError: If a label lies outside 0..K-1.
    """
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise ValueError(f"labels must lie in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}")
    return torch.bincount(labels.flatten(), minlength=num_classes)


def modes_hit(counts: Tensor, *, share: float = 0.0) -> int:
    """Number of classes drawn at least once, and at least `share` times as often as under a uniform distribution."""
    threshold = max(1.0, share * float(counts.sum()) / len(counts))
    return int((counts >= threshold).sum())


def class_kl(generated: Tensor, real: Tensor, *, smoothing: float = 0.5) -> float:
    """KL(generated || real) of the class distributions, in nats.

    Args:
        generated: Counts [K].
        real: Counts [K].
        smoothing: Pseudo-count added to each class of both (1/2 is Jeffreys' prior): without it one class that the real
            subset lacks makes the divergence infinite.
    """
    p, q = _smoothed(generated, smoothing), _smoothed(real, smoothing)
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())


def class_total_variation(generated: Tensor, real: Tensor) -> float:
    """Total variation distance of the class distributions, in [0, 1], from counts [K]."""
    return float((_smoothed(generated, 0.0) - _smoothed(real, 0.0)).abs().sum() / 2)


def _smoothed(counts: Tensor, smoothing: float) -> Tensor:
    wide = counts.double() + smoothing
    return wide / wide.sum()
