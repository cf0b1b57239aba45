"""The points of a sweep over the settings of one checkpoint."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.checkpoints.guiding_classifier import GuidingClassifier
from trilemma.checkpoints.sampling_setup import SamplingSetup, sampling_setup
from trilemma.config.options import group_targets
from trilemma.config.small_options import group_nodes
from trilemma.errors import UserError
from trilemma.models.generator import ImageGenerator

# The settings that each list of `sweep` varies. The last varies fastest.
AXES = {
    "seed": "seed",
    "temperature": "sampler.temperature",
    "truncation": "sampler.truncation",
    "eta": "sampler.eta",
    "scale": "guidance.scale",
    "num_steps": "sampler.num_steps",
}


def setups_of(
    cfg: DictConfig, model: ImageGenerator, config: Mapping[str, Any], classifier: GuidingClassifier | None = None
) -> tuple[SamplingSetup, ...]:
    """Build every point of the sweep (one where nothing is swept), all checked before the first is measured.

    Args:
        cfg: Configuration of `evaluate.py`.
        model: What is to be sampled.
        config: The checkpoint's configuration.
        classifier: The one that `cfg.guidance` names, if any.

    Raises:
        UserError: If a value does not fit.
    """
    axes = {name: _values(cfg, name) for name in ("sampler", *AXES)}
    swept = {name: values for name, values in axes.items() if values is not None}
    if "scale" in swept and classifier is None and not model.condition.has_null:
        raise UserError("sweep.scale: the model is unconditional, and guidance has nothing to guide; leave it out")
    setups: dict[str, SamplingSetup] = {}
    for point in itertools.product(*swept.values()):
        here = _at(cfg, dict(zip(swept, point, strict=True)))
        setup = sampling_setup(here, model, config, classifier)
        setups.setdefault(setup.name, setup)  # a value given twice is measured once
    return tuple(setups.values())


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
    options = group_targets("sampler")
    if name not in options:
        raise UserError(f"sweep.sampler={name}: there is no such sampler; choose from {', '.join(options)}")
    return OmegaConf.create(group_nodes("sampler")[name])
