"""Inputs of a measurement: the checkpoint's data set, an extractor, and all setups of the sweep."""

from __future__ import annotations

from dataclasses import replace

import torch
from omegaconf import DictConfig, OmegaConf

from trilemma.capabilities import supports
from trilemma.checkpoints.guiding_classifier import guiding_classifier
from trilemma.checkpoints.loaded import LoadedModel, data_of, load_model
from trilemma.data.base import ImageData
from trilemma.distributed.job import this_job
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
    loaded = replace(loaded, extractor=extractor)
    if not isinstance(loaded.model, ImageGenerator):
        return loaded
    classifier = guiding_classifier(own, loaded.model, loaded.config)
    return replace(loaded, setups=setups_of(own, loaded.model, loaded.config, classifier))


def extractor_for(cfg: DictConfig, data: ImageData) -> Extractor | None:
    """Load the extractor named on the command line, else the shipped one of the data set; None, which is said, where none reads it."""
    blank = torch.zeros(1, *data.image_shape, dtype=torch.uint8)
    if cfg.extractor is not None:
        extractor = load_extractor(cfg.extractor, device=cfg.device)
        extractor.check(blank)
        return extractor
    try:
        extractor = load_extractor(data.extractor_name, device=cfg.device)
        if data.channels_are_images:
            extractor = StackedExtractor(extractor, data.image_shape[0])
        extractor.check(blank)
    except UserError as error:
        if this_job().is_first:
            print(
                f"{error}. Measured without one: reconstruction (PSNR, SSIM), likelihood, cost and pictures, but no distance, precision or "
                "coverage; extractor=PATH brings one of your own (README, Evaluation)"
            )
        return None
    return extractor


def check_data(data: ImageData, extractor: Extractor | None) -> None:
    """Check, before the first sample is drawn, that there are enough real images to score samples of the data set by.

    Raises:
        UserError: If there are too few.
    """
    if extractor is None:
        return
    for name in ("train", "test"):
        if len(data.split(name)) <= NEAREST_K:
            raise UserError(
                f"{data.name} has {len(data.split(name))} images in its {name} split: "
                f"evaluation needs at least {NEAREST_K + 1}"
            )
