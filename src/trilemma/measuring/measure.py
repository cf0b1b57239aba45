"""Measure one setting of one model, part by part, and keep parts that are up to date."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from trilemma.capabilities import supports
from trilemma.checkpoints.drawing import draw, drawing_digest, sample_grid
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.checkpoints.sampling_setup import SamplingSetup
from trilemma.distributed.kept_blocks import discard
from trilemma.distributed.ranks import Ranks
from trilemma.errors import UserError
from trilemma.evaluation.cost.ledger import measure_ledger
from trilemma.evaluation.features.cache import images_sha256
from trilemma.evaluation.likelihood import score_images, summarise
from trilemma.evaluation.pairs import closest_pairs
from trilemma.evaluation.protocol import METRICS, Machine, Protocol
from trilemma.evaluation.rows import Row, kept_row, move_aside, new_row, write_row
from trilemma.evaluation.samples import Evaluation, evaluate_samples
from trilemma.evaluation.two_stage import code_bits, prior_bits
from trilemma.figures.images import save_png, save_samples_npz
from trilemma.measuring.codec import Numbers, once, oracle_metrics, reconstruction_metrics
from trilemma.models.capabilities import Likelihood, Reconstructs, ScoresLikelihood

_DOING = {  # said before a part is measured, since each takes seconds to minutes
    "likelihood": "Scoring the likelihood of held-out images",
    "two_stage": "Measuring the codec and a perfect prior",
    "ledger": "Timing (nothing else should run now)",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a row besides its metrics, such as the likelihood or the sampling ledger.

    Attributes:
        name: Its key in the row.
        asked: Values that its entry must have to be up to date.
        measure: Makes it.
    """

    name: str
    asked: Mapping[str, Any]
    measure: Callable[[], Numbers]

    def stands(self, row: Row) -> bool:
        """Check whether the row has this part, measured as is asked now."""
        return self.name in row and all(row[self.name].get(key) == value for key, value in self.asked.items())


def protocol_of(
    cfg: DictConfig, loaded: LoadedModel, setup: SamplingSetup | None = None, *, num_images: int | None = None
) -> Protocol:
    """Build the protocol of a row: of samples of a setup, or of `num_images` reconstructions of held-out images.

    A family that draws in a single call has an empty sampler.
    """
    return Protocol(
        data=loaded.data_name,
        data_fingerprint=loaded.data.fingerprint,
        split="test" if setup is None else "train",
        num_images=cfg.num_images if num_images is None else num_images,
        extractor=loaded.judge,
        model=loaded.kind,
        run=loaded.config.get("run_id"),
        weights=loaded.config["weights"],
        seed=cfg.seed if setup is None else setup.seed,
        checkpoint=loaded.sha256,
        sampler={} if setup is None else setup.sampler_node,
        guidance={} if setup is None else setup.guidance_node,
        condition="none" if setup is None else setup.condition,
        machine=Machine.here(cfg.device),
        budget={"max_steps": loaded.config.get("max_steps"), "note": loaded.config.get("budget")},
    )


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One setup of one model, and the processes that measure it.

    Attributes:
        cfg: Configuration of `evaluate.py`, its seed that of the setup.
        loaded: The checkpoint with its data and extractor.
        setup: How it is sampled.
        ranks: The processes; what is written is written by the first.
    """

    cfg: DictConfig
    loaded: LoadedModel
    setup: SamplingSetup
    ranks: Ranks

    @property
    def protocol(self) -> Protocol:
        """The protocol of the row."""
        return protocol_of(self.cfg, self.loaded, self.setup)


def measurement(cfg: DictConfig, loaded: LoadedModel, setup: SamplingSetup, ranks: Ranks) -> Measurement:
    """Build the measurement of one setup."""
    own = cfg.copy()
    own.seed = setup.seed
    return Measurement(own, loaded, setup, ranks)


def measure_setup(what: Measurement, folder: Path) -> tuple[Path, Row]:
    """Measure the parts of one setup that are asked for and missing.

    The row is written after each part, so that a crash loses at most the part that was running. A row by another
    protocol (another checkpoint, data set or extractor) is moved aside, not overwritten.

    Returns:
        Where the row lies, and the row.
    """
    path, ranks = _path(what, folder), what.ranks
    row = ranks.first(lambda: kept_row(path, what.protocol))
    if not row:
        ranks.first(lambda: move_aside(path))
        images = _draw(what, path)
        if ranks.is_first:
            print("Comparing with real images", flush=True)
        row = ranks.first(lambda: _sample_row(what, images, path))
        ranks.first(lambda: _write_samples(what, images, path, row))
    elif ranks.first(lambda: what.cfg.keep_samples and not path.with_suffix(".npz").is_file()):
        images = _draw(what, path)
        ranks.first(lambda: _write_samples(what, images, path, row))
    parts = _parts(what)
    missing = ranks.first(lambda: [part.name for part in parts if not part.stands(row)])
    for part in parts:
        if part.name in missing:
            if ranks.is_first:
                print(_DOING[part.name], flush=True)
            row[part.name] = part.measure()
            ranks.first(lambda: write_row(path, row))
    bits = prior_bits(row.get("likelihood"))
    if "two_stage" in row and row["two_stage"].get("prior_bits_per_image") != bits:
        row["two_stage"]["prior_bits_per_image"] = bits
        ranks.first(lambda: write_row(path, row))
    return path, row


def is_complete(what: Measurement, folder: Path) -> bool:
    """Check whether nothing that is asked of a setup is missing."""
    path = _path(what, folder)
    row = kept_row(path, what.protocol)
    samples = not what.cfg.keep_samples or path.with_suffix(".npz").is_file()
    return bool(row) and samples and all(part.stands(row) for part in _parts(what))


def _path(what: Measurement, folder: Path) -> Path:
    return folder / f"{what.loaded.slug}-{what.setup.name}.json"


def _kept(what: Measurement, path: Path) -> Path:
    """Name the folder of samples that were drawn before an evaluation was stopped."""
    protocol = {k: v for k, v in what.protocol.to_dict().items() if k not in ("machine", "budget")}
    digest = drawing_digest({**protocol, "batch_size": what.cfg.batch_size}, what.cfg.device)
    return path.with_name(f".{path.stem}.drawn-{digest}")


def _draw(what: Measurement, path: Path) -> Tensor:
    """Draw the setup's samples, uint8 [N, C, H, W]; in processes other than the first, none."""
    cfg = what.cfg
    kept = Path(what.ranks.first(lambda: str(_kept(what, path))))
    parts = what.ranks.map(
        lambda indices: draw(what.loaded, what.setup, indices),
        cfg.num_images,
        block=cfg.batch_size,
        keep=kept,
        title="Sampling",
    )
    return torch.cat(parts) if parts else torch.empty(0)


def _sample_row(what: Measurement, images: Tensor, path: Path) -> Row:
    """Score samples, and draw their grid and closest pairs beside the row."""
    cfg, data, extractor, labels = what.cfg, what.loaded.data, what.loaded.extractor, what.setup.labels
    train = data.split("train")
    evaluation = evaluate_samples(
        images,
        labels if labels is not None and extractor and int(labels.max()) < extractor.num_classes else None,
        real=train,
        held_out=data.split("test"),
        extractor=extractor,
        cache_dir=Path(cfg.cache_dir) / "features",
        seed=cfg.seed,
    )
    save_png(sample_grid(images, what.setup.raw), path.with_suffix(".png"))
    if evaluation.neighbours is not None and evaluation.closeness is not None:
        pairs = closest_pairs(images, train.images, evaluation.neighbours, evaluation.closeness)
        save_png(pairs, path.with_name(f"{path.stem}-neighbours.png"))
    return new_row(what.protocol, evaluation, images_sha256(images))


def _write_samples(what: Measurement, images: Tensor, path: Path, row: Row) -> None:
    """Write the row, and beside it the samples where they are to be kept.

    Raises:
        UserError: If the samples are not those of the row.
    """
    if images_sha256(images) != row["samples_sha256"]:
        raise UserError(
            f"the samples drawn now are not those of {path} (another machine or version drew them): "
            "take another output_dir to measure anew"
        )
    if what.cfg.keep_samples:
        save_samples_npz(path.with_suffix(".npz"), images, what.setup.labels)
    write_row(path, row)
    discard(_kept(what, path))


def _parts(what: Measurement) -> list[Part]:
    """List the parts of a row that are asked for and that this family supports."""
    cfg, model = what.cfg, what.loaded.model
    parts: list[Part] = []
    if supports(model, ScoresLikelihood) and cfg.likelihood.num_images:
        num = min(cfg.likelihood.num_images, len(what.loaded.data.split("test")))
        asked = {"num_images": num, "seed": cfg.likelihood.seed}
        if cfg.likelihood.num_samples is not None:
            asked["num_samples"] = cfg.likelihood.num_samples
        parts.append(Part("likelihood", asked, lambda: _likelihood(what, num)))
    if cfg.two_stage and supports(model, Reconstructs) and what.loaded.codec is not None:
        parts.append(Part("two_stage", {}, lambda: _two_stage(what)))
    if cfg.ledger.max_seconds:
        # Times measured on another machine, or with other threads, do not count.
        asked = {"machine": dataclasses.asdict(Machine.here(cfg.device)), "batch_sizes": list(cfg.ledger.batch_sizes)}
        parts.append(Part("ledger", asked, lambda: what.ranks.first(lambda: _ledger(what))))
    return parts


def _ledger(what: Measurement) -> Numbers:
    """Measure the speed of one process; the others wait meanwhile."""
    cfg, setup = what.cfg, what.setup
    ledger = measure_ledger(
        what.loaded.model,
        condition=setup.raw[0] if setup.raw else None,
        sampler=setup.sampler,
        guidance=setup.guidance,
        seed=setup.seed,
        device=cfg.device,
        batch_sizes=list(cfg.ledger.batch_sizes),
        max_seconds=cfg.ledger.max_seconds,
    )
    return {
        **ledger.to_dict(),
        "machine": dataclasses.asdict(Machine.here(cfg.device)),
        "batch_sizes": list(cfg.ledger.batch_sizes),
        "num_processes": 1,
    }


def _likelihood(what: Measurement, num_images: int) -> Numbers:
    """Score the likelihood once a checkpoint: it does not depend on sampling."""
    cfg, loaded = what.cfg, what.loaded
    asked = f"{loaded.config['weights']}-n{cfg.likelihood.num_images}-seed{cfg.likelihood.seed}"
    if cfg.likelihood.num_samples is not None:
        asked += f"-k{cfg.likelihood.num_samples}"
    name = f"v{METRICS}-{loaded.sha256[:16]}-{loaded.data.fingerprint[:16]}-{asked}"

    def scored(indices: range) -> Likelihood:
        test = loaded.data.split("test")
        return score_images(loaded.model, test, indices, device=cfg.device, seed=cfg.likelihood.seed)

    def score() -> Numbers:
        scores = what.ranks.map(scored, num_images, block=cfg.batch_size)
        return what.ranks.first(lambda: {**summarise(scores).to_dict(), "split": "test", "seed": cfg.likelihood.seed})

    return once(what.ranks, Path(cfg.cache_dir) / "likelihood" / f"{name}.json", score)


def _two_stage(what: Measurement) -> Numbers:
    cfg, codec = what.cfg, what.loaded.codec
    assert codec is not None
    return {
        "codec": reconstruction_metrics(cfg, what.loaded, what.ranks),
        "oracle": oracle_metrics(cfg, what.loaded, what.ranks),
        "code_bits_per_image": code_bits(codec),
        "prior_bits_per_image": None,  # until the row has a likelihood
    }


def reconstruction_row(cfg: DictConfig, loaded: LoadedModel, ranks: Ranks) -> Row:
    """Build the row of a model that reconstructs images and draws none."""
    images = loaded.data.split("test").images[:]
    protocol = protocol_of(cfg, loaded, num_images=len(images))
    metrics = reconstruction_metrics(cfg, loaded, ranks)
    return new_row(protocol, Evaluation(metrics, {}), images_sha256(images))
