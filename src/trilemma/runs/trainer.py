"""The trainer of a run, as the configuration and the family want it."""

from __future__ import annotations

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from trilemma.errors import UserError
from trilemma.models.adversarial import Adversarial
from trilemma.runs.build import build
from trilemma.runs.facts import plain
from trilemma.runs.targets import COMMAND_LINE, locate


def build_trainer(cfg: DictConfig) -> Trainer:
    """Build callbacks, loggers and the trainer.

    Raises:
        UserError: If Lightning refuses the combination.
    """
    callbacks = [c for c in build(plain(cfg, "callbacks") or {}, where="callbacks").values() if c is not None]
    loggers = [x for x in build(plain(cfg, "logger") or {}, where="logger").values() if x is not None]
    node = plain(cfg, "trainer") | {"_partial_": True}
    if _optimises_by_itself(cfg):
        node |= {"accumulate_grad_batches": 1, "gradient_clip_val": None}
    if node["accelerator"] == "auto":  # Apple's MPS has no float64, which the processes count in
        node["accelerator"] = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        trainer: Trainer = build(node, where="trainer")(callbacks=callbacks, logger=loggers or False)
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise UserError(f"trainer: {str(error).strip().splitlines()[0]}") from error
    return trainer


def _optimises_by_itself(cfg: DictConfig) -> bool:
    """Whether the family clips and accumulates: Lightning refuses to do it for a family with several optimisers."""
    family = locate(cfg.model._target_, COMMAND_LINE, "model")
    return isinstance(family, type) and issubclass(family, Adversarial)
