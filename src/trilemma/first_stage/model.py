"""Build the model of a run with its first stage, and the configuration that its checkpoints carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trilemma.checkpoints.load import init_weights
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.data.base import ImageData
from trilemma.datasets.tokens import TokenData
from trilemma.distributed.job import this_job
from trilemma.distributed.network_blocks import compile_networks, recompute_activations
from trilemma.distributed.strategies import FullyShard
from trilemma.errors import UserError
from trilemma.first_stage.codec import resolve_codec
from trilemma.first_stage.codes import cached_codes
from trilemma.models.base import Family
from trilemma.models.generator import ImageGenerator
from trilemma.runs.facts import state_codec, state_process
from trilemma.runs.trainer import check_compiler, strategy_of


def build_model(cfg: DictConfig, data: ImageData, resume: str | None) -> Family:
    """Build the model with its first stage, and let the data serve that stage's codes.

    Args:
        cfg: The configuration, with the facts of the data; those of codec and process are filled in.
        data: The run's data.
        resume: The checkpoint that the run goes on from, if any.

    Raises:
        UserError: If the parts do not fit each other.
    """
    codec = None
    if OmegaConf.select(cfg, "codec") is not None:
        if data.binarize == "dynamic" and OmegaConf.select(cfg, "codec._target_") is None:
            raise UserError(
                "data.binarize=dynamic draws training images anew, and codes of a first stage are computed once: "
                "take data.binarize=threshold"
            )
        codec = resolve_codec(cfg, data, resume)
        state_codec(cfg, codec)
    process = state_process(cfg, codec)
    node = plain(cfg, "model")
    built = {key: part for key, part in (("codec", codec), ("process", process)) if part is not None}
    for key in built:
        if key not in node:
            raise UserError(f"a {type_name(cfg)} takes no {key} of its own: leave out {key}=")
    # The model shares the codec object whose codes it learns with its other parts, rather than building a second one.
    model = build(node, where="model", shared=[(plain(cfg, key), part) for key, part in built.items()])
    if not isinstance(model, Family):
        raise UserError(f"model._target_={cfg.model._target_} is not a family")
    model.noise_seed = cfg.seed
    model.config = checkpoint_config(cfg) | {"data_fingerprint": data.fingerprint}
    if isinstance(data, TokenData):
        if cfg.facts.codec is None:
            raise UserError(
                "data=tokens holds codes and no images: it trains priors of a first stage, with codec=vq or another learned codec"
            )
        if data.source is not None:  # samples are compared with images
            model.config["data"] = data.source
    model.check_training(num_updates=cfg.trainer.max_steps, num_images=cfg.facts.num_train_images)
    if cfg.init_from and not resume:
        line = init_weights(model, cfg.init_from, keep=tuple(built))
        if this_job().is_first:
            print(f"init_from={cfg.init_from}: {line}", flush=True)
    if (
        codec is not None and cfg.facts.codec is not None
    ):  # pixels are cheap to encode: only a learned codec's codes are cached
        codes = cached_codes(codec, data, Path(cfg.paths.cache_dir), node=plain(cfg, "data"))
        data.use_codes(codes)
        if not resume:  # a resumed checkpoint holds the scaling its prior was trained with
            codec.standardise(codes["train"].rows())
    if cfg.activation_checkpointing:
        recompute_activations(model)
    if cfg.compile:
        check_compiler(cfg)
        compile_networks(model, sharded=strategy_of(cfg) is FullyShard)
    return model


def type_name(cfg: DictConfig) -> str:
    """Get the model's class name, without its module."""
    return str(cfg.model._target_).rpartition(".")[2]


def check_parts(cfg: DictConfig) -> None:
    """Check that sampler, guidance and condition fit the model, before a first stage is trained for an hour.

    Only classes are compared where an object cannot be built yet; the model's constructor checks the objects.

    Raises:
        UserError: If they do not.
    """
    for key in ("sampler", "guidance", "condition"):
        if OmegaConf.select(cfg, key) is not None and key not in cfg.model:
            raise UserError(f"a {type_name(cfg)} takes no {key}: leave out {key}=")
    family = locate(cfg.model._target_, COMMAND_LINE, "model")
    if not (isinstance(family, type) and issubclass(family, ImageGenerator)):
        return
    with isolate_rng():
        sampler, guidance, condition = (
            build(plain(cfg, key), where=key) if OmegaConf.select(cfg, key) is not None else None
            for key in ("sampler", "guidance", "condition")
        )
    if guidance is not None and condition is not None:
        guidance.check_encoder(condition)
    process = None
    if OmegaConf.select(cfg, "process._target_") is not None:
        located = locate(cfg.process._target_, COMMAND_LINE, "process")
        process = located if isinstance(located, type) else None
    family.check_sampler_kind(None if sampler is None else type(sampler), process)


def checkpoint_config(cfg: DictConfig) -> dict[str, Any]:
    """Build the configuration that a checkpoint carries: it rebuilds the model and its data, and names their origin.

    Optimisers are left out of the model's node: sampling needs none, and a checkpoint may name none of their classes.
    """
    model = {key: node for key, node in plain(cfg, "model").items() if not _optimises(key, node)}
    return {
        "model": model,
        "data": plain(cfg, "data"),
        "sampler": plain(cfg, "sampler"),
        "guidance": plain(cfg, "guidance"),
        "facts": plain(cfg, "facts"),
        "experiment": cfg.experiment_name,
        "run_id": cfg.run.id,
        "seed": cfg.seed,
        "max_steps": cfg.trainer.max_steps,
        "budget": cfg.run.budget,
    }


def _optimises(key: str, node: Any) -> bool:
    if not isinstance(node, dict) or "_target_" not in node:
        return key in ("optimizer", "scheduler")
    target = locate(node["_target_"], COMMAND_LINE, f"model.{key}")
    return isinstance(target, type) and issubclass(target, (Optimizer, LRScheduler))
