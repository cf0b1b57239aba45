"""Inputs of a measurement: the checkpoint's data set, an extractor, and all setups of the sweep."""

from __future__ import annotations

from dataclasses import replace

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.capabilities import supports
from trilemma.checkpoints.guiding_classifier import guiding_classifier
from trilemma.checkpoints.loaded import LoadedModel, data_of, load_model
from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.evaluation import NEAREST_K
from trilemma.evaluation.features.extractor import Extractor, load_extractor
from trilemma.evaluation.features.stacked import StackedExtractor
from trilemma.measuring.setups import setups_of
from trilemma.models.capabilities import EstimatesLikelihood
from trilemma.models.generator import ImageGenerator


def load_with_data(cfg: DictConfig, ckpt: str) -> LoadedModel:
    """Load a checkpoint and its data.

    Raises:
        UserError: If one of them is missing, damaged or foreign.
    """
    loaded = load_model(cfg, ckpt)
    return replace(loaded, dataset=data_of(loaded.config, cfg.data.root))


def prepare_measurement(cfg: DictConfig, loaded: LoadedModel) -> LoadedModel:
    """Add the extractor and every setup of the sweep, each checked.

    Raises:
        UserError: For anything that the user can fix.
    """
    if cfg.likelihood.num_samples is not None:
        if not supports(loaded.model, EstimatesLikelihood):
            raise UserError(
                f"likelihood.num_samples={cfg.likelihood.num_samples}: a {type(loaded.model).__name__} draws no importance samples: "
                "leave it out"
            )
        loaded.model.set_likelihood_samples(cfg.likelihood.num_samples)
    own = cfg.copy()
    OmegaConf.update(own, "ckpt", str(loaded.path))
    extractor = extractor_for(own, loaded.data)
    check_data(loaded.data, extractor)
    loaded = replace(loaded, judged_by=extractor)
    if not isinstance(loaded.model, ImageGenerator):
        return loaded
    classifier = guiding_classifier(own, loaded.model, loaded.config)
    return replace(loaded, setups=setups_of(own, loaded.model, loaded.config, classifier))


def extractor_for(cfg: DictConfig, data: ImageData) -> Extractor:
    """Load the extractor named on the command line, else the shipped one of the data set."""
    extractor = load_extractor(cfg.extractor or data.extractor_name, device=cfg.device)
    if cfg.extractor is None and data.channels_are_images:
        return StackedExtractor(extractor, data.image_shape[0])
    return extractor


def check_data(data: ImageData, extractor: Extractor) -> None:
    """Check, before the first sample is drawn, that samples of the data set can be scored.

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
