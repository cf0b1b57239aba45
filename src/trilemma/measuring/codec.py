"""Measure what does not depend on sampling: the reconstructions of a codec, and a perfect prior on its codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trilemma.atomic import atomic_write_text
from trilemma.capabilities import supports
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData
from trilemma.distributed.ranks import Ranks
from trilemma.evaluation.features.extractor import Extractor
from trilemma.evaluation.protocol import METRICS
from trilemma.evaluation.reconstruction import BATCH_SIZE, Returned, score_reconstruction, send_through
from trilemma.evaluation.rows import plain_numbers
from trilemma.evaluation.two_stage import held_out, score_oracle
from trilemma.first_stage.codes import codec_hash
from trilemma.models.capabilities import Reconstructs

Numbers = dict[str, Any]


def reconstruction_metrics(cfg: DictConfig, loaded: LoadedModel, ranks: Ranks) -> Numbers:
    """Score the model's reconstructions; a codec's scores are cached, since every row of its priors shows them."""
    model, data, extractor, codec = loaded.model, loaded.data, loaded.extractor, loaded.codec
    assert supports(model, Reconstructs)
    images = data.split("test").images

    def returned(indices: range) -> Returned:
        return send_through(model, images[indices.start : indices.stop], codec=codec, device=cfg.device)

    def score() -> Numbers:
        parts = ranks.map(returned, len(images), block=BATCH_SIZE)
        cache = Path(cfg.cache_dir) / "features"
        return ranks.first(
            lambda: plain_numbers(
                score_reconstruction(images, parts, extractor=extractor, codec=codec, cache_dir=cache)
            )
        )

    if codec is None:
        return score()
    return once(ranks, Path(cfg.cache_dir) / "reconstruction" / f"{_codec_key(codec, data, extractor)}.json", score)


def oracle_metrics(cfg: DictConfig, loaded: LoadedModel, ranks: Ranks) -> Numbers:
    """Score a perfect prior on the codes of the model's codec, cached; nothing without an extractor."""
    model, data, extractor, codec = loaded.model, loaded.data, loaded.extractor, loaded.codec
    if extractor is None:
        return {}
    assert codec is not None
    assert supports(model, Reconstructs)
    rows = held_out(data, cfg.num_images, cfg.seed)

    def returned(indices: range) -> Returned:
        images = data.split("test").images[rows[indices.start : indices.stop]]
        return send_through(model, images, device=cfg.device)

    def score() -> Numbers:
        parts = ranks.map(returned, len(rows), block=BATCH_SIZE)
        cache = Path(cfg.cache_dir) / "features"
        return ranks.first(lambda: plain_numbers(score_oracle(parts, data, extractor, cache_dir=cache, seed=cfg.seed)))

    name = f"{_codec_key(codec, data, extractor)}-n{cfg.num_images}-seed{cfg.seed}"
    return once(ranks, Path(cfg.cache_dir) / "oracle_prior" / f"{name}.json", score)


def once(ranks: Ranks, path: Path, make: Callable[[], Numbers]) -> Numbers:
    """Load the result cached at `path`, else compute it by `make`; the name holds all it depends on, a damaged file is recomputed."""
    kept = ranks.first(lambda: _read_numbers(path))
    if kept is not None:
        return kept
    found = make()
    ranks.first(lambda: atomic_write_text(path, json.dumps(found, indent=2) + "\n"))
    return found


def _read_numbers(path: Path) -> Numbers | None:
    if not path.is_file():
        return None
    try:
        kept: Numbers = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        print(f"warning: {path} is damaged; it is made again")
        return None
    return kept


def _codec_key(codec: Codec, data: ImageData, extractor: Extractor | None) -> str:
    """Name all that scores of decoded codes depend on. Codecs without weights differ in class and shape alone."""
    shape = "x".join(map(str, codec.code_shape))
    kind = f"{type(codec).__name__}-{codec.num_classes}-{shape}-{codec_hash(codec)}"
    return f"v{METRICS}-{kind}-{data.fingerprint[:16]}-{extractor.name if extractor else 'none'}"
