"""Mode coverage where each channel shows a class of its own, as in stacked MNIST."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trilemma.evaluation.metrics.histogram import class_counts, class_kl, modes_hit


@dataclass(frozen=True, kw_only=True)
class StackedModes:
    """Which of the K^C combinations of classes were drawn.

    Attributes:
        num_modes: K^C; 1,000 for three digits.
        modes_hit: Combinations drawn at least once.
        uniform_kl: KL(drawn || uniform) in nats, from 0 to C ln K. Even under the uniform law N draws give about
            (K^C - 1) / (2N): compare at one N only.
    """

    num_modes: int
    modes_hit: int
    uniform_kl: float


def stacked_modes(classes: Tensor, num_classes: int) -> StackedModes:
    """Count combinations, as Metz et al. 2017 (arXiv:1611.02163), section 3.3.1, usually over N = 26,000 images.

    Args:
        classes: Class seen in each channel, int64 [N, C], N >= 1.
        num_classes: K of one channel.

    Raises:
        ValueError: If the shape is another, or a class lies outside 0..K-1.
    """
    if classes.ndim != 2 or classes.numel() == 0:
        raise ValueError(f"need the classes of each channel, [N >= 1, C], got {list(classes.shape)}")
    class_counts(classes.flatten(), num_classes)  # a class out of range would pass for another combination
    num_modes = num_classes ** classes.shape[1]
    counts = class_counts(combined_label(classes, num_classes), num_modes)
    uniform = torch.ones(num_modes)
    # Unsmoothed: the reference is known and has no empty class.
    return StackedModes(
        num_modes=num_modes, modes_hit=modes_hit(counts), uniform_kl=class_kl(counts, uniform, smoothing=0.0)
    )


def combined_label(classes: Tensor, num_classes: int) -> Tensor:
    """The classes of the channels, int64 [N, C], read as digits of one number in base K, int64 [N]: (1, 2, 3) is 123."""
    label = torch.zeros_like(classes[:, 0])
    for channel in classes.unbind(1):
        label = label * num_classes + channel
    return label
