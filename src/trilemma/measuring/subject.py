"""What is measured: a checkpoint with its data set and the extractor that judges it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from trilemma.checkpoints.load import load_with_config
from trilemma.cli.sample import run_dir_of
from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT
from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import Extractor, load_extractor
from trilemma.evaluation.features.stacked import StackedExtractor
from trilemma.evaluation.samples import NEAREST_K
from trilemma.models.base import Family


@dataclass(frozen=True)
class Subject:
    """A model under measurement.

    Attributes:
        path: Its checkpoint.
        sha256: Content hash of the checkpoint.
        model: The family, with the weights that were asked for.
        config: What the checkpoint says of itself.
        data: The data set it was trained on.
    """

    path: Path
    sha256: str
    model: Family
    config: dict[str, Any]
    data: ImageData

    @property
    def slug(self) -> str:
        """The experiment's name, fit for a file name."""
        return str(self.config.get("experiment")).replace("/", "-")

    @property
    def run_dir(self) -> Path:
        """The run directory the checkpoint lies in."""
        return run_dir_of(self.path)

    @property
    def kind(self) -> str:
        """Experiment and family, for people."""
        return f"{self.config.get('experiment')} ({type(self.model).__name__})"


def load_subject(cfg: DictConfig, ckpt: str) -> Subject:
    """Load a checkpoint and its data.

    Raises:
        UserError: If one of them is missing, damaged or foreign.
    """
    model, config = load_with_config(ckpt, weights=cfg.weights, device=cfg.device)
    digest = hashlib.sha256(Path(ckpt).read_bytes()).hexdigest()
    return Subject(Path(ckpt), digest, model, config, data_of(config, cfg.data.root))


def extractor_for(cfg: DictConfig, data: ImageData) -> Extractor:
    """The extractor named on the command line, else the shipped one of the data set."""
    extractor = load_extractor(cfg.extractor or data.extractor_name, device=cfg.device)
    if cfg.extractor is None and data.channels_are_images:
        return StackedExtractor(extractor, data.image_shape[0])
    return extractor


def check_data(data: ImageData, extractor: Extractor) -> None:
    """See that samples of the data set can be scored, before the first is drawn.

    Raises:
        UserError: If the extractor does not read such images, or there are too few real ones.
    """
    extractor.check(torch.zeros(1, *data.image_shape, dtype=torch.uint8))
    for name in ("train", "test"):
        if len(data.split(name)) <= NEAREST_K:
            raise UserError(
                f"{data.name} has {len(data.split(name))} images in its {name} split: "
                f"evaluation needs at least {NEAREST_K + 1}"
            )


def data_of(config: dict[str, Any], root: str | None) -> ImageData:
    """The data set a checkpoint was trained on.

    Args:
        config: The checkpoint's configuration.
        root: Where the data lies now, where that is not where training found it.
    """
    node = dict(config["data"])
    if root is not None:
        node["root"] = root
    data = build(node, allowed=CHECKPOINT, where="data")
    if not isinstance(data, ImageData):
        raise UserError("the checkpoint's configuration names no data set; was it written by train.py?")
    data.setup()
    return data
