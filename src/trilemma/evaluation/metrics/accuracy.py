"""Does an image show what was asked for?"""

from __future__ import annotations

from torch import Tensor


def label_accuracy(predicted: Tensor, wanted: Tensor) -> float:
    """Share of images whose predicted class is the one they were conditioned on, in [0, 1].

    Args:
        predicted: Classes seen by a classifier, int64 [N].
        wanted: Classes that the images were to show, int64 [N].

    Raises:
        ValueError: If the shapes differ or are empty.
    """
    if predicted.shape != wanted.shape or predicted.numel() == 0:
        raise ValueError(f"need as many labels as images, got {list(wanted.shape)} for {list(predicted.shape)}")
    return float((predicted == wanted.to(predicted.device)).double().mean())
