"""Facts: quantities known only after the data and the codec exist, written into the configuration's `facts` node."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from trilemma.codecs.base import Codec
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.processes.categorical.base import CategoricalProcess


def state_data(cfg: DictConfig, data: ImageData) -> None:
    """Write what the data set says of itself."""
    cfg.facts.image_shape = list(data.image_shape)
    cfg.facts.num_labels = data.num_labels
    cfg.facts.num_train_images = len(data.split("train"))
    condition = (OmegaConf.select(cfg, "condition._target_") or "").rpartition(".")[2]
    guidance = (OmegaConf.select(cfg, "guidance._target_") or "").rpartition(".")[2]
    if condition == "LabelCondition" and data.num_labels is None:
        raise UserError(
            "condition=label needs a data set with labels: put images into class sub-folders, or take condition=none guidance=none"
        )
    if condition == "NoCondition" and guidance == "ClassifierFree":
        raise UserError(
            "guidance=classifier_free has nothing to strengthen with condition=none: take guidance=none too"
        )


def state_codec(cfg: DictConfig, codec: Codec) -> None:
    """Write what the codec says of itself."""
    cfg.facts.code_shape = list(codec.code_shape)
    cfg.facts.num_classes = codec.num_classes


def state_process(cfg: DictConfig) -> None:
    """Write the number of states of a categorical process.

    Raises:
        UserError: If the process does not fit the codec: a categorical one needs tokens, a Gaussian one continuous codes.
    """
    if OmegaConf.select(cfg, "process._target_") is None:
        return
    target = locate(cfg.process._target_, COMMAND_LINE, "process")
    name = cfg.process._target_.rsplit(".", 1)[1]
    categorical = isinstance(target, type) and issubclass(target, CategoricalProcess)
    if categorical and cfg.facts.num_classes is None:
        raise UserError(
            f"process={name} is categorical and needs tokens, but the codec gives continuous values: take codec=pixels_256, "
            "codec=pixels_2 or codec=vq, or process=gaussian"
        )
    if not categorical and cfg.facts.num_classes is not None:
        raise UserError(
            f"process={name} needs continuous codes, but the codec gives tokens: take codec=pixels, codec=kl or "
            "codec=vq_latents, or a categorical process"
        )
    if categorical:
        process = build(plain(cfg, "process"), where="process")
        assert isinstance(process, CategoricalProcess)
        cfg.facts.num_states = process.num_states
