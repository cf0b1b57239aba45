"""The likelihood of a split of images, with what kind of number it is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from trilemma.capabilities import supports
from trilemma.data.batch import Batch
from trilemma.data.loader import EvalLoader
from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.models.capabilities import Likelihood, ScoresLikelihood


@dataclass(frozen=True, kw_only=True)
class LikelihoodScore:
    """Negative log-likelihood of images: less is better, within one kind, unit and data set only.

    Attributes:
        kind: "exact"; "bound", which the true value does not exceed; "estimate".
        unit: What one dimension is ("token", "subpixel"): bits of different units are not comparable.
        num_dims: Number of dimensions of an image.
        num_images: Number of images N.
        num_samples: Importance samples an image that an estimate is made of; None where there are none.
        nats_per_image: Mean over images.
        nats_standard_error: Standard error of that mean over images, s / sqrt(N); it holds the noise of a bound that is
            drawn once an image, and not that of training.
        bits_per_dim: Mean over images and dimensions: nats / (num_dims ln 2).
        bits_standard_error: Standard error of that mean.
    """

    kind: Literal["exact", "bound", "estimate"]
    unit: str
    num_dims: int
    num_images: int
    nats_per_image: float
    nats_standard_error: float
    bits_per_dim: float
    bits_standard_error: float
    num_samples: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers; what is not finite as a string that `float()` reads, since JSON has no word for it."""
        content = dataclasses.asdict(self)
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in content.items()
        }

    def __str__(self) -> str:
        sign = {"exact": "=", "bound": "<=", "estimate": "~"}[self.kind]
        how = self.kind if self.num_samples is None else f"{self.kind}, {self.num_samples} samples"
        return f"{sign} {self.bits_per_dim:.4f} +- {self.bits_standard_error:.4f} bits/{self.unit} ({how})"


def score_split(
    model: nn.Module,
    split: Split,
    *,
    max_images: int | None = None,
    batch_size: int = 250,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LikelihoodScore:
    """Score the images of a split in evaluation mode.

    The batch size moves the result by rounding alone, for a family whose random draws follow the image's index.

    Args:
        model: A family that scores likelihoods; its training mode is restored.
        split: Images.
        max_images: Score the first so many; None scores all.
        batch_size: Images at a time.
        device: Where the model is.
        seed: Of what a bound or an estimate draws at random.

    Raises:
        UserError: If the model gives no likelihood, or there are fewer than two images.
        ValueError: If the model mixes kinds, units or dimensions, gives another number of values than images, or one
            that is no number.
    """
    num = len(split) if max_images is None else min(max_images, len(split))
    blocks = [range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)]
    return summarise([score_images(model, split, block, device=device, seed=seed) for block in blocks])


@torch.no_grad()
def score_images(
    model: nn.Module, split: Split, positions: range, *, device: torch.device | str = "cpu", seed: int = 0
) -> Likelihood:
    """Score some images of a split in one batch; arguments and errors as in `score_split`.

    Returns:
        The likelihood of each image, on the CPU.
    """
    if not supports(model, ScoresLikelihood):
        raise UserError(f"a {type(model).__name__} gives no likelihood: there is nothing to score")
    [batch] = EvalLoader(split.take(np.asarray(positions)), batch_size=len(positions))
    was_training = model.training
    model.eval()
    try:
        score = model.score_likelihood(_to(batch, device), seed=seed)
    finally:
        model.train(was_training)
    if score.nats.shape != (len(positions),):
        raise ValueError(f"{len(positions)} images were scored with nats {list(score.nats.shape)}")
    return dataclasses.replace(score, nats=score.nats.cpu())


def summarise(scores: list[Likelihood]) -> LikelihoodScore:
    """Mean and standard error over the images of all batches.

    Raises:
        UserError: If there are fewer than two images, which leaves the standard error undefined.
        ValueError: If the batches are not of one kind, unit and dimension, or a value is no number.
    """
    if sum(len(score.nats) for score in scores) < 2:
        raise UserError("need at least 2 images to score a likelihood with its standard error")
    kinds = {(score.kind, score.unit, score.num_dims, score.num_samples) for score in scores}
    if len(kinds) > 1:
        raise ValueError(f"the batches mix likelihoods that are not comparable: {sorted(map(str, kinds))}")
    ((kind, unit, num_dims, num_samples),) = kinds
    nats = torch.cat([score.nats.detach().double().cpu() for score in scores])
    if bool(nats.isnan().any()):
        raise ValueError(f"the likelihood of {int(nats.isnan().sum())} of {len(nats)} images is not a number")
    mean = float(nats.mean())
    error = float(nats.std()) / math.sqrt(len(nats))
    per_dim = 1 / (num_dims * math.log(2))
    return LikelihoodScore(
        kind=kind,
        unit=unit,
        num_dims=num_dims,
        num_images=len(nats),
        nats_per_image=mean,
        nats_standard_error=error,
        bits_per_dim=mean * per_dim,
        bits_standard_error=error * per_dim,
        num_samples=num_samples,
    )


def _to(batch: Batch, device: torch.device | str) -> Batch:
    moved = {name: part.to(device) if isinstance(part, Tensor) else part for name, part in batch.items()}
    return cast(Batch, moved)
