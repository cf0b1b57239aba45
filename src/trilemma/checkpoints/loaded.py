"""A loaded checkpoint: the model, its data and its extractor."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trilemma.checkpoints.load import load_with_config
from trilemma.checkpoints.sampling_setup import SamplingSetup
from trilemma.codecs.base import Codec
from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT
from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import Extractor
from trilemma.evaluation.protocol import NO_EXTRACTOR
from trilemma.models.base import Family


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint that is sampled or measured.

    Attributes:
        path: The checkpoint.
        model: The family, with the weights that were asked for.
        config: The configuration in the checkpoint.
        setups: The ways it is sampled; none where it draws no images.
        dataset: What it was trained on, where it is measured.
        extractor: The extractor that scores it, where it is measured and there is one for its data.
    """

    path: Path
    model: Family
    config: dict[str, Any]
    setups: tuple[SamplingSetup, ...] = ()
    dataset: ImageData | None = None
    extractor: Extractor | None = None

    @property
    def data(self) -> ImageData:
        """The data set it was trained on."""
        assert self.dataset is not None
        return self.dataset

    @property
    def judge(self) -> str:
        """Name of its extractor for a protocol."""
        return NO_EXTRACTOR if self.extractor is None else self.extractor.name

    @property
    def codec(self) -> Codec | None:
        """The model's codec, if it has one."""
        codec = getattr(self.model, "codec", None)
        return codec if isinstance(codec, Codec) else None

    @cached_property
    def sha256(self) -> str:
        """Content hash of the checkpoint."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    @property
    def slug(self) -> str:
        """The experiment's name, fit for a file name."""
        return str(self.config.get("experiment")).replace("/", "-")

    @property
    def kind(self) -> str:
        """Experiment and family, for people."""
        return f"{self.config.get('experiment')} ({type(self.model).__name__})"

    @property
    def run_dir(self) -> Path:
        """The run directory the checkpoint lies in; its own folder where it was moved elsewhere."""
        folder = self.path.absolute().parent
        folder = folder.parent if folder.name == "checkpoints" else folder
        return Path(os.path.relpath(folder))


def load_model(cfg: DictConfig, ckpt: str | Path) -> LoadedModel:
    """Load a checkpoint with the weights and on the device that a command names.

    Raises:
        UserError: If it is missing, damaged or foreign.
    """
    model, config = load_with_config(ckpt, weights=cfg.weights, device=cfg.device)
    return LoadedModel(Path(ckpt), model, config)


def data_of(config: dict[str, Any], root: str | None) -> ImageData:
    """Build the data set a checkpoint was trained on.

    Args:
        config: The checkpoint's configuration.
        root: Where the data lies now, where that is not where training found it.

    Raises:
        UserError: If there is none, or its files are missing.
    """
    if config["data"] is None:  # it was trained elsewhere
        raise UserError(
            "this checkpoint names no data to measure it on: convert it with data=image_folder data.root=DIR, or the like"
        )
    node = dict(config["data"])
    if root is not None:
        node["root"] = root
    data = build(node, allowed=CHECKPOINT, where="data")
    if not isinstance(data, ImageData):
        raise UserError("the checkpoint's configuration names no data set; was it written by train.py?")
    data.setup()
    return data
