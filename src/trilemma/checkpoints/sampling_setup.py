"""A way to sample a checkpoint, built, checked, and described for a row of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from trilemma.checkpoints.guiding_classifier import GuidingClassifier
from trilemma.checkpoints.settings import sampling_settings, settings_name
from trilemma.conditions.base import ConditionEncoder
from trilemma.config.build import build
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.models.generator import ImageGenerator
from trilemma.samplers.base import Sampler
from trilemma.samplers.guidance import Guidance


@dataclass(frozen=True)
class SamplingSetup:
    """A sampler, a guidance and a condition that fit a model.

    Attributes:
        name: File name that says the settings.
        sampler: The checkpoint's own, changed where the command line says so; None where the family draws in a single call.
        guidance: Likewise.
        sampler_node: What builds the sampler, in plain containers; empty where there is none.
        guidance_node: Likewise.
        raw: One label or string an image; None for unconditional samples.
        condition: What the samples are conditioned on, in a few words.
        seed: Of the samples.
    """

    name: str
    sampler: Sampler | None
    guidance: Guidance
    sampler_node: dict[str, Any]
    guidance_node: dict[str, Any]
    raw: list[Any] | None
    condition: str
    seed: int

    @property
    def labels(self) -> Tensor | None:
        """The class labels int64 [N] of the samples, where they are conditioned on labels."""
        if self.raw is None or not all(isinstance(value, int) for value in self.raw):
            return None
        return torch.tensor(self.raw)


def sampling_setup(
    cfg: DictConfig,
    model: ImageGenerator,
    config: Mapping[str, Any],
    classifier: GuidingClassifier | None = None,
) -> SamplingSetup:
    """Build and check the setup that a command asks for.

    Args:
        cfg: Configuration of `sample.py` or `evaluate.py`.
        model: What is to be sampled.
        config: Its checkpoint's configuration.
        classifier: The one that `cfg.guidance` names, if any.

    Raises:
        UserError: If a value is out of range, or the parts do not fit each other or the model.
    """
    sampler_node, guidance_node = sampling_settings(cfg, config, classifier)
    sampler = build(sampler_node, where="sampler") if sampler_node else None
    filled = guidance_node if classifier is None else {**guidance_node, "classifier": classifier.module}
    guidance = build(filled, where="guidance")
    if not (sampler is None or isinstance(sampler, Sampler)) or not isinstance(guidance, Guidance):
        raise UserError("sampler and guidance must name a Sampler and a Guidance")
    model.check_sampler(sampler)
    model.check_guidance(guidance)
    raw = asked_condition(cfg, model, guidance)
    return SamplingSetup(
        name=settings_name(cfg, config, sampler_node, guidance_node),
        sampler=sampler,
        guidance=guidance,
        sampler_node=sampler_node,
        guidance_node=guidance_node,
        raw=raw,
        condition=condition_reader(model, guidance).describe(raw),
        seed=cfg.seed,
    )


def require_generator(model: Family, path: Any) -> ImageGenerator:
    """Check that the model draws images, and narrow its type.

    Raises:
        UserError: If its family draws none.
    """
    if not isinstance(model, ImageGenerator):
        raise UserError(
            f"{path} holds a {type(model).__name__}, which draws no images; sample from a generative model's checkpoint"
        )
    return model


def condition_reader(model: ImageGenerator, guidance: Guidance) -> ConditionEncoder | Guidance:
    """Find the object that reads the raw condition first: the guidance or the encoder. It knows examples and names for it."""
    return guidance if guidance.reads_condition else model.condition


def asked_condition(cfg: DictConfig, model: ImageGenerator, guidance: Guidance) -> list[Any] | None:
    """Choose the raw conditions of `cfg.num_images` samples: the command line's, else examples of the model.

    `condition.label` is a class, a list that is taken in turn, "all", or "none" for unconditional samples; `condition.caption`
    a string, or a list that is taken in turn.

    Raises:
        UserError: If the model does not know them, or knows no examples and nothing was asked for: samples of a conditional model
            are never unconditional in silence.
    """
    num, label, caption = cfg.num_images, _plain(cfg.condition.label), _plain(cfg.condition.caption)
    if caption is not None and label is not None:
        raise UserError("give condition.label or condition.caption, not both")
    raw: list[Any] | None
    if caption is not None:
        raw = _in_turn(caption, num, str, f"condition.caption={caption}: give a caption, or a list of captions")
    elif label == "none":
        raw = None
    elif label is None or label == "all":
        reader = condition_reader(model, guidance)
        raw = reader.examples(num)
        if raw is None and label == "all":
            raise UserError("this model is unconditional: leave out condition.label")
        if raw is None and isinstance(reader, ConditionEncoder) and reader.steers:
            raise UserError(
                f"samples of this model are steered by a {type(reader).__name__}, which knows no examples: give condition.caption=... "
                "or condition.label=..., or condition.label=none for unconditional samples"
            )
    else:
        raw = _in_turn(
            label, num, int, f"condition.label={label}: give a class number, a list such as [0,7], all, or none"
        )
    model.check_condition(raw, guidance)
    return raw


def _in_turn(given: Any, num: int, kind: type, refusal: str) -> list[Any]:
    choices = given if isinstance(given, list) else [given]
    if not choices or not all(isinstance(choice, kind) and not isinstance(choice, bool) for choice in choices):
        raise UserError(refusal)
    return [choices[i % len(choices)] for i in range(num)]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
