"""The command `python -m trilemma.convert`: a VQGAN of taming-transformers becomes a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from trilemma.checkpoints.write import AtomicCheckpointIO
from trilemma.codecs.vq import VQ
from trilemma.config.build import build
from trilemma.config.check import check_config
from trilemma.config.nodes import plain
from trilemma.config.schema import PATHS
from trilemma.config.targets import CHECKPOINT
from trilemma.errors import UserError
from trilemma.first_stage.taming import codec_node, fill_codec
from trilemma.models.base import CHECKPOINT_FORMAT
from trilemma.models.vqvae import VQVAE

SCHEMA: dict[str, Any] = {"source": str, "output": str, "image_size": int, "data": None, "paths": PATHS, "seed": int}


def convert(cfg: DictConfig) -> None:
    """Read a state dict, rebuild its codec and write a checkpoint.

    Raises:
        UserError: If the file is missing, holds code, or is no VQGAN of taming-transformers.
    """
    check_config(cfg, SCHEMA)
    source = Path(cfg.source)
    state = read_state_dict(source)
    node = codec_node(state, cfg.image_size)
    codec = build(node, allowed=CHECKPOINT, where="codec")
    assert isinstance(codec, VQ)
    fill_codec(codec, state)
    model = VQVAE(codec=codec)
    config = {
        "model": {"_target_": f"{VQVAE.__module__}.{VQVAE.__name__}", "codec": node},
        "data": None if OmegaConf.select(cfg, "data._target_") is None else plain(cfg, "data"),
        "facts": {"image_shape": node["image_shape"], "codec": None},
        "experiment": f"converted/{source.stem}",
    }
    mark = {"format": CHECKPOINT_FORMAT, "version": version("trilemma"), "config": config}
    AtomicCheckpointIO().save_checkpoint({"state_dict": model.state_dict(), "trilemma": mark}, cfg.output)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    height, width = codec.code_shape
    print(
        f"{cfg.output}: {millions:.1f} M parameters, {height} x {width} tokens of {codec.num_classes} codes", flush=True
    )


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of a state dict, or of a checkpoint with one inside; nothing in the file is executed.

    Raises:
        UserError: If it is missing, no such file, or holds pickled objects.
    """
    if not path.is_file():
        raise UserError(f"source={path}: there is no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises UnpicklingError, RuntimeError, EOFError, ... also for what it has not written
        if not _holds_code(path):
            raise UserError(f"source={path} is no file of torch.save: name a state dict") from error
        raise UserError(
            f"source={path} holds pickled objects beside weights, which may run code. If you trust it, save its weights alone:  "
            f"python -c \"import torch; torch.save(torch.load('{path}', weights_only=False)['state_dict'], 'state.pt')\""
        ) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"source={path} holds no state dict")
    return state


def _holds_code(path: Path) -> bool:
    try:
        return bool(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it is no archive of torch's, or of the format before
        return False
