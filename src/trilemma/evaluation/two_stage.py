"""What each stage of a two-stage model loses: the codec alone, a perfect prior on its codes, the prior that was learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData
from trilemma.evaluation.features.extractor import Extractor, chunks
from trilemma.evaluation.likelihood import LikelihoodScore
from trilemma.evaluation.reconstruction import BATCH_SIZE, Returned, send_through
from trilemma.evaluation.samples import evaluate_samples
from trilemma.models.capabilities import Reconstructs

SHOWN = ("FD[", "FD_inf[", "KID[", "precision", "recall", "density", "coverage")


def oracle_prior(
    model: Reconstructs,
    data: ImageData,
    extractor: Extractor,
    *,
    num_images: int,
    device: torch.device | str = "cpu",
    batch_size: int = BATCH_SIZE,
    cache_dir: str | Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of decoded codes of held-out images: what a prior that draws codes by the data's own distribution would reach.

    Args:
        model: Gives images back through its codec.
        data: Whose held-out images are encoded and decoded.
        extractor: Names the distances.
        num_images: How many, as many as samples are scored with, if there are so many.
        device: Where the model is.
        batch_size: Images at a time.
        cache_dir: Where features of real images are kept.
        seed: Of the choice of images, and of the subsets of the scores.
    """
    images = data.split("test").images[held_out(data, num_images, seed)]
    parts = [send_through(model, part, device=device) for part in chunks(images, batch_size)]
    return score_oracle(parts, data, extractor, cache_dir=cache_dir, seed=seed)


def held_out(data: ImageData, num_images: int, seed: int) -> Tensor:
    """Which held-out images a perfect prior is made of: positions in the test split, int64 [n], `num_images` at most."""
    return torch.randperm(len(data.split("test")), generator=torch.Generator().manual_seed(seed))[:num_images]


def score_oracle(
    returned: Sequence[Returned],
    data: ImageData,
    extractor: Extractor,
    *,
    cache_dir: str | Path | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of what came back of held-out images, as if it were samples; arguments as in `oracle_prior`."""
    scores = evaluate_samples(
        torch.cat([part.images for part in returned]),
        real=data.split("train"),
        held_out=data.split("test"),
        extractor=extractor,
        cache_dir=cache_dir,
        seed=seed,
    ).metrics
    return {"num_images": scores["num_images"]} | {k: v for k, v in scores.items() if k.startswith(SHOWN)}


def code_bits(codec: Codec) -> float | None:
    """Bits of an image's code as it is stored, L log2 K; None for a continuous code."""
    return None if codec.num_classes is None else codec.length * math.log2(codec.num_classes)


def prior_bits(likelihood: LikelihoodScore | dict[str, Any] | None) -> float | None:
    """Bits of an image's code under the prior (of the likelihood's kind); None where nothing scored it by tokens."""
    if likelihood is None:
        return None
    content = likelihood if isinstance(likelihood, dict) else likelihood.to_dict()
    return float(content["nats_per_image"]) / math.log(2) if content["unit"] == "token" else None
