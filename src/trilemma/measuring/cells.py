"""The points of a sweep over the settings of one checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.checkpoints.fits import check_fits, sampler_options
from trilemma.checkpoints.guiding_classifier import GuidingClassifier
from trilemma.checkpoints.settings import build_sampling, labels_for, sampling_settings, settings_name
from trilemma.cli.sample import conditioned_on
from trilemma.config import CONF
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.samplers.base import Sampler
from trilemma.samplers.guidance import Guidance

# Where each list of `sweep` lands. The last varies fastest.
AXES = {
    "seed": "seed",
    "temperature": "sampler.temperature",
    "truncation": "sampler.truncation",
    "eta": "sampler.eta",
    "scale": "guidance.scale",
    "num_steps": "sampler.num_steps",
}


@dataclass(frozen=True)
class Cell:
    """One setting, checked and built.

    Attributes:
        cfg: The configuration at this point.
        name: File name that says the settings.
        sampler_node: The sampler's configuration.
        guidance_node: The guidance's.
        sampler: The sampler.
        guidance: The guidance.
        labels: One a sample; None for unconditional samples.
    """

    cfg: DictConfig
    name: str
    sampler_node: dict[str, Any]
    guidance_node: dict[str, Any]
    sampler: Sampler
    guidance: Guidance
    labels: list[int] | None

    @property
    def condition(self) -> str:
        """What the samples are conditioned on, for the protocol."""
        if self.labels is None:
            return "none"
        label = self.cfg.condition.label
        return f"label: {'all in turn' if label in (None, 'all') else label}"


def cells_of(
    cfg: DictConfig,
    config: Mapping[str, Any],
    classifier: GuidingClassifier | None = None,
    model: Family | None = None,
) -> list[Cell]:
    """Every point of the sweep (one where nothing is swept), each checked before the first is measured.

    Args:
        cfg: Configuration of `evaluate.py`.
        config: The checkpoint's configuration.
        classifier: The one that `cfg.guidance` names, if any.
        model: What is to be sampled: every sampler must fit it. Not asked where None.

    Raises:
        UserError: If a value does not fit.
    """
    axes = {name: _values(cfg, name) for name in ("sampler", *AXES)}
    swept = {name: values for name, values in axes.items() if values is not None}
    if "scale" in swept and classifier is None and conditioned_on(dict(config)) is None:
        raise UserError("sweep.scale: the model is unconditional, and guidance has nothing to guide; leave it out")
    cells: dict[str, Cell] = {}
    for point in itertools.product(*swept.values()):
        cell = _cell(_at(cfg, dict(zip(swept, point, strict=True))), config, classifier)
        if model is not None:
            check_fits(cell.sampler, model)
        cells.setdefault(cell.name, cell)  # a value given twice is measured once
    return list(cells.values())


def _values(cfg: DictConfig, name: str) -> list[Any] | None:
    given = cfg.sweep[name]
    if given is None:
        return None
    values = list(given) if OmegaConf.is_list(given) else [given]
    if not values:
        raise UserError(f"sweep.{name} is empty: give values, as in sweep.{name}=[1,2], or leave it out")
    kind = str if name == "sampler" else (int if name in ("seed", "num_steps") else (int, float))
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UserError(f"sweep.{name}={values}: {value!r} is not {_KINDS.get(name, 'a number')}")
    return values if name in _KINDS else [float(value) for value in values]  # 2 and 2.0 are one point


_KINDS = {"sampler": "the name of a sampler", "seed": "a whole number", "num_steps": "a whole number"}


def _at(cfg: DictConfig, point: Mapping[str, Any]) -> DictConfig:
    here = cfg.copy()
    OmegaConf.set_struct(here, False)
    if "sampler" in point:
        single = {k: v for k, v in cfg.sampler.items() if v is not None and k != "_target_"}
        here.sampler = OmegaConf.merge(_sampler_named(point["sampler"]), single)
    for name, value in point.items():
        if name in AXES:
            OmegaConf.update(here, AXES[name], value)
    return here


def _sampler_named(name: str) -> DictConfig:
    options = sampler_options()
    if name not in options:
        raise UserError(f"sweep.sampler={name}: there is no such sampler; choose from {', '.join(options)}")
    node = OmegaConf.load(CONF / "sampler" / f"{name}.yaml")
    assert isinstance(node, DictConfig)
    return node


def _cell(cfg: DictConfig, config: Mapping[str, Any], classifier: GuidingClassifier | None) -> Cell:
    sampler_node, guidance_node = sampling_settings(cfg, config, classifier)
    sampler, guidance = build_sampling(sampler_node, guidance_node, classifier)
    labels = labels_for(cfg.num_images, cfg.condition.label, conditioned_on(dict(config), guidance))
    guidance.check(labels)
    name = settings_name(cfg, config, sampler_node, guidance_node)
    return Cell(cfg, name, sampler_node, guidance_node, sampler, guidance, labels)
