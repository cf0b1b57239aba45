"""Mode coverage of stacked images, read off by the extractor of their single channels."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from torch import Tensor

from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.evaluation.cache import cached_embed
from trilemma.evaluation.evaluate import Evaluation
from trilemma.evaluation.extractor import Extractor, Images
from trilemma.evaluation.metrics.stacked_modes import stacked_modes

_log = logging.getLogger(__name__)


def evaluate_stacked_modes(
    samples: Images, *, real_floor: Split, extractor: Extractor, cache_dir: str | Path | None = None
) -> Evaluation:
    """Modes hit and KL to the uniform law, beside those of as many real images.

    The extractor's errors scatter images over modes that they do not show: the floor says how many.

    Args:
        samples: uint8 [N, C, H, W].
        real_floor: Held-out stacked images; the first N are scored.
        extractor: Of one channel, [1, H, W].
        cache_dir: Where features of real images are kept; None keeps none.

    Raises:
        UserError: If the images do not fit the extractor, or each other.
    """
    if tuple(samples.shape[1:]) != tuple(real_floor.images.shape[1:]):
        raise UserError(
            f"samples {list(samples.shape)} are no images of the data set, {list(real_floor.images.shape[1:])} each"
        )
    num = min(len(samples), len(real_floor))
    if num < len(samples):
        _log.warning("only %d real images for %d samples: the KL of the two is not comparable", num, len(samples))
    return Evaluation(
        metrics=_scores(channel_classes(samples, extractor), extractor),
        floor=_scores(channel_classes(real_floor.images[:num], extractor, cache_dir), extractor),
    )


def channel_classes(images: Images, extractor: Extractor, cache_dir: str | Path | None = None) -> Tensor:
    """The class that each channel shows, int64 [N, C], of images uint8 [N, C, H, W]; raises as `Extractor.embed`."""
    channels = images[:].flatten(0, 1).unsqueeze(1)
    logits = cached_embed(extractor, channels, cache_dir).logits
    if logits is None:
        raise UserError(f"extractor {extractor.name} sees no classes: modes are counted by a classifier")
    return logits.argmax(dim=1).view(len(images), -1)


def _scores(classes: Tensor, extractor: Extractor) -> dict[str, float]:
    modes = stacked_modes(classes, extractor.num_classes)
    return {"num_images": float(len(classes))} | {k: float(v) for k, v in dataclasses.asdict(modes).items()}
