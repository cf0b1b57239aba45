"""Checkpoints on the bench, the same in every process, and what of them is computed block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from trilemma.capabilities import supports
from trilemma.checkpoints.guiding_classifier import guiding_classifier
from trilemma.checkpoints.settings import set_threads
from trilemma.cli.sample import draw
from trilemma.codecs.base import Codec
from trilemma.data.base import SplitName
from trilemma.evaluation.features.extractor import Embedding, Extractor
from trilemma.evaluation.likelihood import score_images
from trilemma.evaluation.reconstruction import Returned, send_through
from trilemma.evaluation.two_stage import held_out
from trilemma.measuring.cells import Cell, cells_of
from trilemma.measuring.subject import Subject, check_data, extractor_for, load_subject
from trilemma.models.base import Likelihood, Reconstructs, Samples
from trilemma.quiet import quieten


@dataclass(frozen=True)
class Candidate:
    """A checkpoint under measurement.

    Attributes:
        number: Its place on the bench.
        subject: The checkpoint with its data.
        extractor: What judges it.
        cells: The settings it is sampled with; none where it draws no images.
    """

    number: int
    subject: Subject
    extractor: Extractor
    cells: list[Cell]


def candidate(cfg: DictConfig, path: str, number: int = 0) -> Candidate:
    """Load a checkpoint, its data and its extractor, and check every setting.

    Raises:
        UserError: For anything that the user can fix.
    """
    return judged(cfg, load_subject(cfg, path), number)


def judged(cfg: DictConfig, subject: Subject, number: int = 0) -> Candidate:
    """As `candidate`, of a checkpoint that is loaded."""
    own = cfg.copy()
    OmegaConf.update(own, "ckpt", str(subject.path))
    extractor = extractor_for(own, subject.data)
    check_data(subject.data, extractor)
    cells: list[Cell] = []
    if isinstance(subject.model, Samples):
        classifier = guiding_classifier(own, subject.model, subject.config)
        cells = cells_of(own, subject.config, classifier, subject.model)
    return Candidate(number, subject, extractor, cells)


def codec_of(one: Candidate) -> Codec | None:
    """The codec that the model goes through, if there is one."""
    codec = getattr(one.subject.model, "codec", None)
    return codec if isinstance(codec, Codec) else None


def load_bench(cfg: DictConfig, paths: Sequence[str]) -> list[Candidate]:
    """What a process that lends a hand holds: the candidates of the first one, in their order."""
    quieten()
    set_threads(cfg)
    return [candidate(cfg, path, number) for number, path in enumerate(paths)]


def draw_block(bench: list[Candidate], indices: range, rows: None, number: int, cell: int) -> Tensor:
    """Samples of a cell, uint8 [n, C, H, W]."""
    model, setting = bench[number].subject.model, bench[number].cells[cell]
    assert isinstance(model, Samples)
    return draw(model, setting.labels, indices, setting.sampler, setting.guidance, seed=setting.cfg.seed)


def score_block(bench: list[Candidate], indices: range, rows: None, number: int, device: str, seed: int) -> Likelihood:
    """Likelihoods of held-out images."""
    subject = bench[number].subject
    return score_images(subject.model, subject.data.split("test"), indices, device=device, seed=seed)


def return_block(bench: list[Candidate], indices: range, rows: None, number: int, device: str) -> Returned:
    """What comes back of held-out images, with their code."""
    model, test = bench[number].subject.model, bench[number].subject.data.split("test")
    assert supports(model, Reconstructs)
    images = test.images[indices.start : indices.stop]
    return send_through(model, images, codec=codec_of(bench[number]), device=device)


def oracle_block(
    bench: list[Candidate], indices: range, rows: None, number: int, num_images: int, device: str, seed: int
) -> Returned:
    """What comes back of the held-out images that a perfect prior is made of."""
    model, data = bench[number].subject.model, bench[number].subject.data
    assert supports(model, Reconstructs)
    chosen = held_out(data, num_images, seed)[indices.start : indices.stop]
    return send_through(model, data.split("test").images[chosen], device=device)


def embed_block(
    bench: list[Candidate], indices: range, rows: Tensor | None, number: int, split: SplitName | None
) -> Embedding:
    """Features of images that are given, or of a split that every process has."""
    one = bench[number]
    if rows is None:
        assert split is not None
        rows = one.subject.data.split(split).images[indices.start : indices.stop]
    return one.extractor.embed(rows)
