"""Work on one block of images, run by all processes on the checkpoints that each of them holds."""

from __future__ import annotations

from torch import Tensor

from trilemma.capabilities import supports
from trilemma.checkpoints.drawing import draw
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.codecs.base import Codec
from trilemma.data.base import SplitName
from trilemma.evaluation.features.extractor import Embedding
from trilemma.evaluation.likelihood import score_images
from trilemma.evaluation.reconstruction import Returned, send_through
from trilemma.evaluation.two_stage import held_out
from trilemma.models.capabilities import Likelihood, Reconstructs


def codec_of(loaded: LoadedModel) -> Codec | None:
    """Get the model's codec, if it has one."""
    codec = getattr(loaded.model, "codec", None)
    return codec if isinstance(codec, Codec) else None


def draw_block(models: list[LoadedModel], indices: range, rows: None, number: int, setup: int) -> Tensor:
    """Draw samples of a setup, uint8 [n, C, H, W]."""
    return draw(models[number], models[number].setups[setup], indices)


def score_block(
    models: list[LoadedModel], indices: range, rows: None, number: int, device: str, seed: int
) -> Likelihood:
    """Compute likelihoods of held-out images."""
    loaded = models[number]
    return score_images(loaded.model, loaded.data.split("test"), indices, device=device, seed=seed)


def return_block(models: list[LoadedModel], indices: range, rows: None, number: int, device: str) -> Returned:
    """Reconstruct held-out images, and return their codes too."""
    model, test = models[number].model, models[number].data.split("test")
    assert supports(model, Reconstructs)
    images = test.images[indices.start : indices.stop]
    return send_through(model, images, codec=codec_of(models[number]), device=device)


def oracle_block(
    models: list[LoadedModel], indices: range, rows: None, number: int, num_images: int, device: str, seed: int
) -> Returned:
    """Reconstruct the held-out images that stand for the samples of a perfect prior."""
    model, data = models[number].model, models[number].data
    assert supports(model, Reconstructs)
    chosen = held_out(data, num_images, seed)[indices.start : indices.stop]
    return send_through(model, data.split("test").images[chosen], device=device)


def embed_block(
    models: list[LoadedModel], indices: range, rows: Tensor | None, number: int, split: SplitName | None
) -> Embedding:
    """Embed images that are given, or those of a split that every process has."""
    one = models[number]
    if rows is None:
        assert split is not None
        rows = one.data.split(split).images[indices.start : indices.stop]
    return one.extractor.embed(rows)
