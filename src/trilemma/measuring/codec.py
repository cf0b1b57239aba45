"""Measure what does not depend on sampling: the reconstructions of a codec, and a perfect prior on its codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trilemma.atomic import atomic_write_text
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData
from trilemma.distributed.ranks import Ranks
from trilemma.evaluation.features.extractor import Extractor
from trilemma.evaluation.protocol import METRICS
from trilemma.evaluation.reconstruction import BATCH_SIZE, score_reconstruction
from trilemma.evaluation.rows import plain_numbers
from trilemma.evaluation.two_stage import held_out, score_oracle
from trilemma.first_stage.codes import codec_hash
from trilemma.measuring.blocks import codec_of, oracle_block, return_block
from trilemma.measuring.embedding import extractor_of

Numbers = dict[str, Any]


def reconstruction_metrics(cfg: DictConfig, loaded: LoadedModel, ranks: Ranks) -> Numbers:
    """Score the model's reconstructions; a codec's scores are cached, since every row of its priors shows them."""
    data, extractor = loaded.data, extractor_of(loaded, ranks)
    codec = codec_of(loaded)
    images = data.split("test").images

    def score() -> Numbers:
        found = score_reconstruction(
            images,
            ranks.map(return_block, len(images), loaded.number, cfg.device, block=BATCH_SIZE),
            extractor=extractor,
            codec=codec,
            cache_dir=Path(cfg.cache_dir) / "features",
        )
        return plain_numbers(found)

    if codec is None:
        return score()
    return once(Path(cfg.cache_dir) / "reconstruction" / f"{_codec_key(codec, data, extractor)}.json", score)


def oracle_metrics(cfg: DictConfig, loaded: LoadedModel, ranks: Ranks) -> Numbers:
    """Score a perfect prior on the codes of the model's codec; cached."""
    data, extractor = loaded.data, extractor_of(loaded, ranks)
    codec = codec_of(loaded)
    assert codec is not None

    def score() -> Numbers:
        num = len(held_out(data, cfg.num_images, cfg.seed))
        returned = ranks.map(oracle_block, num, loaded.number, cfg.num_images, cfg.device, cfg.seed, block=BATCH_SIZE)
        found = score_oracle(returned, data, extractor, cache_dir=Path(cfg.cache_dir) / "features", seed=cfg.seed)
        return plain_numbers(found)

    name = f"{_codec_key(codec, data, extractor)}-n{cfg.num_images}-seed{cfg.seed}"
    return once(Path(cfg.cache_dir) / "oracle_prior" / f"{name}.json", score)


def once(path: Path, make: Callable[[], Numbers]) -> Numbers:
    """Load the result cached at `path`, else compute it by `make`; the name holds all it depends on, a damaged file is recomputed."""
    if path.is_file():
        try:
            kept: Numbers = json.loads(path.read_text(encoding="utf-8"))
            return kept
        except ValueError:
            print(f"warning: {path} is damaged; it is made again")
    found = make()
    atomic_write_text(path, json.dumps(found, indent=2) + "\n")
    return found


def _codec_key(codec: Codec, data: ImageData, extractor: Extractor) -> str:
    """Name all that scores of decoded codes depend on. Codecs without weights differ in class and shape alone."""
    shape = "x".join(map(str, codec.code_shape))
    kind = f"{type(codec).__name__}-{codec.num_classes}-{shape}-{codec_hash(codec)}"
    return f"v{METRICS}-{kind}-{data.fingerprint[:16]}-{extractor.name}"
