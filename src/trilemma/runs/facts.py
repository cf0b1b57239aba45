"""Facts known only once the data and the codec exist, written into the configuration's `facts` node."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.codecs.base import Codec
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.processes.categorical.base import CategoricalProcess


def state_data(cfg: DictConfig, data: ImageData) -> None:
    """Write the facts of the data set."""
    cfg.facts.image_shape = list(data.image_shape)
    cfg.facts.num_labels = data.num_labels
    cfg.facts.num_train_images = data.num_train_images
    cfg.facts.num_levels = data.num_levels


def state_codec(cfg: DictConfig, codec: Codec) -> None:
    """Write the facts of the codec."""
    cfg.facts.code_shape = list(codec.code_shape)
    cfg.facts.num_classes = codec.num_classes


def state_process(cfg: DictConfig, codec: Codec | None) -> Any:
    """Build the process, which may depend on the codec, and write the number of its states where it is categorical.

    Returns:
        The process; None where the model has none.

    Raises:
        UserError: If a categorical process is to follow a codec of continuous values.
    """
    if OmegaConf.select(cfg, "process._target_") is None:
        return None
    target = locate(cfg.process._target_, COMMAND_LINE, "process")
    # Checked here, because building the process would fail with a less clear message.
    if (
        codec is not None
        and codec.num_classes is None
        and isinstance(target, type)
        and issubclass(target, CategoricalProcess)
    ):
        raise UserError(
            f"process={target.__name__} is categorical and needs tokens, but the codec gives continuous values: take codec=pixels_256, "
            "codec=pixels_2 or codec=vq, or process=gaussian"
        )
    shared = [] if codec is None else [(plain(cfg, "codec"), codec)]
    process = build(plain(cfg, "process"), where="process", shared=shared)
    cfg.facts.num_states = getattr(process, "num_states", None)
    return process
