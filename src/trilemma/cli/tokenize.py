"""The command `python -m trilemma.tokenize`: encode a data set, each process its share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.checkpoints.device import pick_device
from trilemma.config.build import build
from trilemma.config.check import check_config
from trilemma.config.nodes import plain
from trilemma.config.schema import PATHS
from trilemma.data.base import ImageData
from trilemma.datasets.tokens import TokenData
from trilemma.distributed.job import this_job
from trilemma.errors import UserError
from trilemma.first_stage.codec import load_codec
from trilemma.first_stage.codes import codec_hash, codes_dir
from trilemma.first_stage.shards import CodeMaker
from trilemma.quiet import quieten
from trilemma.runs.directory import prepare

SCHEMA: dict[str, Any] = {
    "ckpt": str,
    "weights": Literal["ema", "raw"],
    "data": None,
    "paths": PATHS,
    "read_as": str | None,
    "batch_size": int | None,
    "shard_size": int | None,
    "verify": bool,
    "device": str,
    "num_threads": int | None,
    "seed": int,
    "output_dir": str | None,
}
_READINGS = {"vq_latents": "trilemma.codecs.vq_latents.VQLatents"}


def tokenize(cfg: DictConfig) -> None:
    """Write the codes of all splits, or those that are missing.

    Raises:
        UserError: For anything that the user can fix, before anything is encoded.
    """
    job = this_job()
    job.rank_zero_first("checked", lambda: _check(cfg))
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    maker, folder, data = job.rank_zero_first("opened", lambda: _open(cfg, job.local_rank))
    if cfg.verify:
        for name in job.broadcast("verified", lambda: [path.name for path in maker.discard_damaged()]):
            if job.is_first:
                print(f"damaged, made again: {folder / name}", flush=True)
    made = maker.make(("train", "val", "test"), job)
    if job.is_first:
        sizes = ", ".join(f"{len(data.split(name))} {name}" for name in ("train", "val", "test"))
        num_bytes = sum(made.codes(name).num_bytes for name in made.splits)
        print(f"{sizes} images as {made.meta['dtype']} codes, {num_bytes / 1e6:.1f} MB: {folder}", flush=True)


def _check(cfg: DictConfig) -> None:
    if OmegaConf.select(cfg, "data._target_") is None:
        raise UserError("no images to encode: name a data set, for example data=mnist (--help lists them)")
    check_config(cfg, SCHEMA)
    if cfg.read_as is not None and cfg.read_as not in _READINGS:
        raise UserError(f"read_as={cfg.read_as}: choose {' or '.join(_READINGS)}, or leave it out")
    if cfg.num_threads is not None and cfg.num_threads < 1:
        raise UserError(f"num_threads={cfg.num_threads} must be at least 1")
    quieten()


def _open(cfg: DictConfig, local_rank: int) -> tuple[CodeMaker, Path, ImageData]:
    data = build(plain(cfg, "data"), where="data")
    if not isinstance(data, ImageData):
        raise UserError(f"data._target_={cfg.data._target_} is not a data set")
    if isinstance(data, TokenData):
        raise UserError("data=tokens holds codes already: name the images' own data set")
    data.setup()
    read_as = None if cfg.read_as is None else _READINGS[cfg.read_as]
    codec, _, _ = load_codec(Path(cfg.ckpt), data, read_as=read_as, where="ckpt", weights=cfg.weights)
    if not any(True for _ in codec.parameters()):
        raise UserError(
            f"ckpt={cfg.ckpt}: a {type(codec).__name__} learned nothing, so its codes are made when they are needed"
        )
    folder = codes_dir(codec, data, Path(cfg.paths.cache_dir)) if cfg.output_dir is None else Path(cfg.output_dir)
    prepare(folder)
    device = pick_device(cfg.device)
    if device == "cuda" and (num := torch.cuda.device_count()):
        device = f"cuda:{local_rank % num}"  # a modulo, because SLURM may show each process only its own GPU
    digest = codec_hash(codec)
    try:
        codec = codec.freeze().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={cfg.device} cannot be used: {str(error).splitlines()[0]}") from None
    maker = CodeMaker(
        codec, digest, data, folder, node=plain(cfg, "data"), batch_size=cfg.batch_size, shard_size=cfg.shard_size
    )
    return maker, folder, data
