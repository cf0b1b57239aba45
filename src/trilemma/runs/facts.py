"""Facts: quantities known only after the data and the codec exist, written into the configuration's `facts` node."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.codecs.base import Codec
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.data.base import ImageData


def state_data(cfg: DictConfig, data: ImageData) -> None:
    """Write what the data set says of itself."""
    cfg.facts.image_shape = list(data.image_shape)
    cfg.facts.num_labels = data.num_labels
    cfg.facts.num_train_images = len(data.split("train"))


def state_codec(cfg: DictConfig, codec: Codec) -> None:
    """Write what the codec says of itself."""
    cfg.facts.code_shape = list(codec.code_shape)
    cfg.facts.num_classes = codec.num_classes


def state_process(cfg: DictConfig, codec: Codec | None) -> Any:
    """Build the process, which may read the codec, and write the number of its states where it is categorical.

    Returns:
        The process; None where the model has none.

    Raises:
        UserError: If the process does not fit the codec.
    """
    if OmegaConf.select(cfg, "process._target_") is None:
        return None
    shared = [] if codec is None else [(plain(cfg, "codec"), codec)]
    process = build(plain(cfg, "process"), where="process", shared=shared)
    cfg.facts.num_states = getattr(process, "num_states", None)
    return process
