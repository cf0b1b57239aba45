"""Score reconstructions: what a model loses on the way to its code and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.codecs.usage import CodebookUsage
from trilemma.data.images import to_float, to_uint8
from trilemma.errors import UserError
from trilemma.evaluation.features.cache import cached_embed
from trilemma.evaluation.features.extractor import Extractor, Images, chunks
from trilemma.evaluation.metrics.frechet import frechet_distance
from trilemma.evaluation.metrics.reconstruction import psnr, psnr_pooled, squared_errors, ssim
from trilemma.models.capabilities import Reconstructs

BATCH_SIZE = 250


class Returned(NamedTuple):
    """What came back of some images, on the CPU: uint8 [n, C, H, W], and their code where its use is counted."""

    images: Tensor
    code: Tensor | None = None


def evaluate_reconstruction(
    model: Reconstructs,
    images: Images,
    *,
    extractor: Extractor | None,
    codec: Codec | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    cache_dir: str | Path | None = None,
) -> dict[str, float]:
    """Send images through a model and score what comes back.

    Args:
        model: Gives images back.
        images: uint8 [N, C, H, W] that it was not trained on, N >= 2.
        extractor: As in `score_reconstruction`.
        codec: Likewise.
        device: Where the model is.
        batch_size: Images at a time.
        cache_dir: As in `score_reconstruction`.

    Returns:
        What `score_reconstruction` gives; raises as it does.
    """
    parts = [send_through(model, chunk, codec=codec, device=device) for chunk in chunks(images, batch_size)]
    return score_reconstruction(images, parts, extractor=extractor, codec=codec, cache_dir=cache_dir)


@torch.no_grad()
def send_through(
    model: Reconstructs, images: Tensor, *, codec: Codec | None = None, device: torch.device | str = "cpu"
) -> Returned:
    """A batch of images to its code and back.

    Args:
        model: Gives images back.
        images: uint8 [n, C, H, W].
        codec: Where it has token classes, the code is given as well.
        device: Where the model is.
    """
    batch = to_float(images.to(device))
    code = codec.encode(batch).cpu() if codec is not None and codec.num_classes is not None else None
    return Returned(to_uint8(model.reconstruct(batch)).cpu(), code)


def score_reconstruction(
    images: Images,
    returned: Sequence[Returned],
    *,
    extractor: Extractor | None,
    codec: Codec | None = None,
    cache_dir: str | Path | None = None,
) -> dict[str, float]:
    """Compare images with what came back of them.

    Args:
        images: uint8 [N, C, H, W], N >= 2.
        returned: Of all of them, in their order.
        extractor: Names the Frechet distance between the images and their reconstructions, `rFD[<extractor>]`, which is left out
            without one.
        codec: Where it has token classes, their use over all images is added as `codebook_*`.
        cache_dir: Where features of the real images are kept; None keeps none.

    Returns:
        `psnr` (mean over images), `psnr_pooled` (of the pooled error), both in dB, `ssim`, `rFD[...]`, and the
        codebook's use.

    Raises:
        UserError: If there are fewer than two images, or they do not fit the extractor.
    """
    if len(images) < 2:
        raise UserError(f"{len(images)} images: need at least 2 to measure reconstruction")
    original, back = images[:].cpu(), torch.cat([part.images for part in returned])
    errors = squared_errors(original, back)
    scores = {
        "num_images": float(len(images)),
        "psnr": psnr(errors),
        "psnr_pooled": psnr_pooled(errors),
        "ssim": ssim(original, back),
    }
    if extractor is not None:
        real = cached_embed(extractor, images, cache_dir).features
        scores[f"rFD[{extractor.name}]"] = frechet_distance(extractor.features(back), real)
    if codec is not None and codec.num_classes is not None:
        usage = CodebookUsage(codec.num_classes, sync_on_compute=False)  # of several processes one has all codes
        for part in returned:
            assert part.code is not None
            usage.update(part.code)
        scores |= {f"codebook_{name}": float(value) for name, value in usage.compute().items()}
    return scores
