"""Measure one setting of one model, part by part, and keep what stands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from trilemma.atomic import atomic_write_text
from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.evaluation.cache import images_sha256
from trilemma.evaluation.evaluate import Evaluation, evaluate_reconstruction, evaluate_samples
from trilemma.evaluation.extractor import Extractor
from trilemma.evaluation.ledger.ledger import measure_ledger
from trilemma.evaluation.likelihood import score_split
from trilemma.evaluation.pairs import closest_pairs
from trilemma.evaluation.protocol import METRICS, Machine, Protocol
from trilemma.evaluation.rows import Row, kept_row, move_aside, new_row, plain_numbers, write_row
from trilemma.evaluation.two_stage import code_bits, oracle_prior, prior_bits
from trilemma.images import save_png, save_samples_npz
from trilemma.models.base import Reconstructs, Samples, ScoresLikelihood, able
from trilemma.runs.cells import Cell
from trilemma.runs.codes import codec_hash
from trilemma.runs.sample import draw, grid_of
from trilemma.runs.subject import Subject

Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a row beside its metrics.

    Attributes:
        name: Its key in the row.
        asked: What it must say of itself to be what is asked for now.
        measure: Makes it.
    """

    name: str
    asked: Mapping[str, Any]
    measure: Callable[[], Numbers]

    def stands(self, row: Row) -> bool:
        """Whether the row has it as it is asked for."""
        return self.name in row and all(row[self.name].get(key) == value for key, value in self.asked.items())


def protocol_of(
    cfg: DictConfig, subject: Subject, extractor: Extractor, *, cell: Cell | None = None, num_images: int | None = None
) -> Protocol:
    """The protocol of a row: of samples at a cell, or of `num_images` reconstructions of held-out images."""
    return Protocol(
        data=subject.data.name,
        data_fingerprint=subject.data.fingerprint,
        split="test" if cell is None else "train",
        num_images=cfg.num_images if num_images is None else num_images,
        extractor=extractor.name,
        model=subject.kind,
        run=subject.config.get("run_id"),
        weights=subject.config["weights"],
        seed=cfg.seed if cell is None else cell.cfg.seed,
        checkpoint=subject.sha256,
        sampler={} if cell is None else cell.sampler_node,
        guidance={} if cell is None else cell.guidance_node,
        condition="none" if cell is None else cell.condition,
        machine=Machine.here(cfg.device),
        budget={"max_steps": subject.config.get("max_steps"), "note": subject.config.get("budget")},
    )


def measure_cell(cell: Cell, subject: Subject, extractor: Extractor, folder: Path) -> tuple[Path, Row]:
    """Measure what is wanted at one setting and is not there yet.

    The row is written after each part, so that a crash loses at most the part that was running. A row by another
    protocol (another checkpoint, data set or extractor) is moved aside, not overwritten.

    Returns:
        Where the row lies, and the row.
    """
    cfg = cell.cfg
    path = folder / f"{subject.slug}-{cell.name}.json"
    row = kept_row(path, protocol_of(cfg, subject, extractor, cell=cell))
    if not row:
        move_aside(path)
        row = _sample_row(cell, subject, extractor, path)
        write_row(path, row)
    elif cfg.keep_samples and not path.with_suffix(".npz").is_file():
        images, _ = _draw(cell, subject, path)
        if images_sha256(images) != row["samples_sha256"]:
            path.with_suffix(".npz").unlink()
            raise UserError(
                f"the samples drawn now are not those of {path} (another machine or version drew them): "
                "take another output_dir to measure anew"
            )
    for part in _parts(cell, subject, extractor):
        if not part.stands(row):
            row[part.name] = part.measure()
            write_row(path, row)
    bits = prior_bits(row.get("likelihood"))
    if "two_stage" in row and row["two_stage"].get("prior_bits_per_image") != bits:
        row["two_stage"]["prior_bits_per_image"] = bits
        write_row(path, row)
    return path, row


def is_complete(cell: Cell, subject: Subject, extractor: Extractor, folder: Path) -> bool:
    """Whether nothing that is wanted of a cell is missing."""
    path = folder / f"{subject.slug}-{cell.name}.json"
    row = kept_row(path, protocol_of(cell.cfg, subject, extractor, cell=cell))
    samples = not cell.cfg.keep_samples or path.with_suffix(".npz").is_file()
    return bool(row) and samples and all(part.stands(row) for part in _parts(cell, subject, extractor))


def _sample_row(cell: Cell, subject: Subject, extractor: Extractor, path: Path) -> Row:
    cfg, data = cell.cfg, subject.data
    images, labels = _draw(cell, subject, path)
    train = data.split("train")
    evaluation = evaluate_samples(
        images,
        labels if labels is not None and int(labels.max()) < extractor.num_classes else None,
        real=train,
        real_floor=data.split("test"),
        extractor=extractor,
        cache_dir=Path(cfg.cache_dir) / "features",
        seed=cfg.seed,
    )
    save_png(grid_of(images, labels), path.with_suffix(".png"))
    if evaluation.neighbours is not None and evaluation.closeness is not None:
        pairs = closest_pairs(images, train.images, evaluation.neighbours, evaluation.closeness)
        save_png(pairs, path.with_name(f"{path.stem}-neighbours.png"))
    return new_row(protocol_of(cfg, subject, extractor, cell=cell), evaluation, images_sha256(images))


def _draw(cell: Cell, subject: Subject, path: Path) -> tuple[Tensor, Tensor | None]:
    """The cell's samples, uint8 [N, C, H, W], and their labels; written beside the row where they are to be kept."""
    assert isinstance(subject.model, Samples)
    images = draw(subject.model, cell.cfg, cell.labels, cell.sampler, cell.guidance)
    labels = None if cell.labels is None else torch.tensor(cell.labels)
    if cell.cfg.keep_samples:
        save_samples_npz(path.with_suffix(".npz"), images, labels)
    return images, labels


def _parts(cell: Cell, subject: Subject, extractor: Extractor) -> list[Part]:
    """The parts of a row beside its metrics that are wanted and that this family can give."""
    cfg, model = cell.cfg, subject.model
    parts: list[Part] = []
    if able(model, ScoresLikelihood) and cfg.likelihood.num_images:
        num = min(cfg.likelihood.num_images, len(subject.data.split("test")))
        asked = {"num_images": num, "seed": cfg.likelihood.seed}
        parts.append(Part("likelihood", asked, lambda: _likelihood(cfg, subject)))
    if cfg.two_stage and able(model, Reconstructs) and isinstance(getattr(model, "codec", None), Codec):
        parts.append(Part("two_stage", {}, lambda: _two_stage(cell, subject, extractor)))
    if cfg.ledger.max_seconds:
        # Times of another machine, or with other threads, do not answer what is asked here.
        asked = {"machine": dataclasses.asdict(Machine.here(cfg.device)), "batch_sizes": list(cfg.ledger.batch_sizes)}
        parts.append(Part("ledger", asked, lambda: _ledger(cell, subject)))
    return parts


def _ledger(cell: Cell, subject: Subject) -> Numbers:
    cfg = cell.cfg
    ledger = measure_ledger(
        subject.model,
        condition=cell.labels[0] if cell.labels else None,
        sampler=cell.sampler,
        guidance=cell.guidance,
        seed=cfg.seed,
        device=cfg.device,
        batch_sizes=list(cfg.ledger.batch_sizes),
        max_seconds=cfg.ledger.max_seconds,
    )
    return {
        **ledger.to_dict(),
        "machine": dataclasses.asdict(Machine.here(cfg.device)),
        "batch_sizes": list(cfg.ledger.batch_sizes),
    }


def _likelihood(cfg: DictConfig, subject: Subject) -> Numbers:
    """The likelihood does not depend on how one samples: it is scored once a checkpoint."""
    asked = f"{subject.config['weights']}-n{cfg.likelihood.num_images}-seed{cfg.likelihood.seed}"
    name = f"v{METRICS}-{subject.sha256[:16]}-{subject.data.fingerprint[:16]}-{asked}"

    def score() -> Numbers:
        scored = score_split(
            subject.model,
            subject.data.split("test"),
            max_images=cfg.likelihood.num_images,
            batch_size=cfg.batch_size,
            device=cfg.device,
            seed=cfg.likelihood.seed,
        )
        return {**scored.to_dict(), "split": "test", "seed": cfg.likelihood.seed}

    return once(Path(cfg.cache_dir) / "likelihood" / f"{name}.json", score)


def _two_stage(cell: Cell, subject: Subject, extractor: Extractor) -> Numbers:
    cfg, model, data = cell.cfg, subject.model, subject.data
    codec = getattr(model, "codec", None)
    assert able(model, Reconstructs)
    assert isinstance(codec, Codec)
    name = f"{_codec_key(codec, data, extractor)}-n{cfg.num_images}-seed{cfg.seed}"

    def oracle() -> Numbers:
        found = oracle_prior(
            model,
            data,
            extractor,
            num_images=cfg.num_images,
            device=cfg.device,
            cache_dir=Path(cfg.cache_dir) / "features",
            seed=cfg.seed,
        )
        return plain_numbers(found)

    return {
        "codec": reconstruction_metrics(cfg, subject, extractor),
        "oracle": once(Path(cfg.cache_dir) / "oracle_prior" / f"{name}.json", oracle),
        "code_bits_per_image": code_bits(codec),
        "prior_bits_per_image": None,  # until the row has a likelihood
    }


def _codec_key(codec: Codec, data: ImageData, extractor: Extractor) -> str:
    """Names what decoded codes are scored by. Codecs without weights differ in their class and shape alone."""
    shape = "x".join(map(str, codec.code_shape))
    kind = f"{type(codec).__name__}-{codec.num_classes}-{shape}-{codec_hash(codec)}"
    return f"v{METRICS}-{kind}-{data.fingerprint[:16]}-{extractor.name}"


def reconstruction_metrics(cfg: DictConfig, subject: Subject, extractor: Extractor) -> Numbers:
    """Scores of the model's reconstructions; those of a codec are kept, since every row of its priors shows them."""
    model, data = subject.model, subject.data
    assert able(model, Reconstructs)
    codec = getattr(model, "codec", None)

    def score() -> Numbers:
        found = evaluate_reconstruction(
            model,
            data.split("test").images,
            extractor=extractor,
            codec=codec if isinstance(codec, Codec) else None,
            device=cfg.device,
            cache_dir=Path(cfg.cache_dir) / "features",
        )
        return plain_numbers(found)

    if not isinstance(codec, Codec):
        return score()
    return once(Path(cfg.cache_dir) / "reconstruction" / f"{_codec_key(codec, data, extractor)}.json", score)


def once(path: Path, make: Callable[[], Numbers]) -> Numbers:
    """What `make` gives, kept at `path`, whose name holds everything that it depends on; a damaged file is made again."""
    if path.is_file():
        try:
            kept: Numbers = json.loads(path.read_text(encoding="utf-8"))
            return kept
        except ValueError:
            print(f"warning: {path} is damaged; it is made again")
    found = make()
    atomic_write_text(path, json.dumps(found, indent=2) + "\n")
    return found


def reconstruction_row(cfg: DictConfig, subject: Subject, extractor: Extractor, images: Tensor) -> Row:
    """The row of a model that gives images back and draws none."""
    protocol = protocol_of(cfg, subject, extractor, num_images=len(images))
    metrics = reconstruction_metrics(cfg, subject, extractor)
    return new_row(protocol, Evaluation(metrics, {}), images_sha256(images))
