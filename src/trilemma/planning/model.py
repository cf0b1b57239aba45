"""The model of a run on the meta device: without its data, its first stage's weights, or any weights at all."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from trilemma.codecs.base import Codec, flatten
from trilemma.config import schema
from trilemma.config.build import build
from trilemma.config.check import check_config
from trilemma.config.nodes import plain
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.data.base import ImageData
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.planning.sizes import OptimiserProbe
from trilemma.processes.noise import NoiseSource
from trilemma.runs.facts import state_codec, state_process

_UNKNOWN = "not-needed-for-a-plan"
_ASSUMED_LABELS = 1000
_OPTIMISERS = ("optimizer", "discriminator_optimizer")


@contextmanager
def on_meta() -> Iterator[None]:
    """Put every parameter and buffer that a module registers meanwhile on the meta device.

    Unlike `torch.device("meta")` it leaves all other tensors alone: schedules that check their own tables go on working. A
    weight is moved before it is filled, so half a billion of them take no memory and no time.
    """

    def moved(module: nn.Module, name: str, tensor: Tensor | None) -> Any:
        if tensor is None or tensor.is_meta:
            return None  # what is registered stays as it is
        shape = tensor.detach().to("meta")
        return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape

    with register_module_parameter_registration_hook(moved), register_module_buffer_registration_hook(moved):
        yield


@dataclass(frozen=True, eq=False)
class PlannedModel:
    """A family on the meta device."""

    family: Family
    codec: Codec | None  # whose codes, computed before, it trains on; None where it trains on images
    optimiser_bytes: int  # states of its optimisers
    image_shape: tuple[int, int, int]  # (C, H, W)
    num_labels: int | None  # of the data; None where there are none
    num_train_images: int | None  # where known
    notes: Sequence[str]  # what was assumed, and what was left out

    def batch(self, size: int) -> Batch:
        """A batch of so many images, on the meta device."""
        image, number = torch.empty(size, *self.image_shape, device="meta"), torch.empty(size, device="meta").long()
        batch = Batch(index=number)
        if self.codec is None:
            batch["image"] = image
        else:
            with torch.no_grad():
                code = self.codec.cache(image)
            batch["code"] = code if code.is_floating_point() else flatten(code)
        if self.num_labels is not None:
            batch["label"] = number
        return batch


def plan_model(cfg: DictConfig) -> PlannedModel:
    """Check a configuration and build its model on the meta device.

    The facts come from the configuration (`facts.image_shape`, ...), from the data set where it knows them without
    reading a file, and from the recipe of the first stage.

    Raises:
        UserError: If the configuration is wrong, or a fact is missing.
    """
    for group in ("data", "codec"):  # where the data lie and which codec is taken are not asked for
        if OmegaConf.is_config(node := cfg.get(group)):
            for key in OmegaConf.missing_keys(node):
                OmegaConf.update(cfg, key, _UNKNOWN)
    check_config(cfg, schema.TRAIN)
    notes: list[str] = []
    _state_data(cfg, notes)
    codec = None
    if OmegaConf.select(cfg, "codec") is not None:
        codec = _codec(cfg, notes)
        state_codec(cfg, codec)
    process = state_process(cfg, codec)  # off the meta device: its tables are looked at while it is built

    node = plain(cfg, "model")
    shared = [(plain(cfg, key), part) for key, part in (("codec", codec), ("process", process)) if part is not None]
    probes = {key: OptimiserProbe(build(node[key], where=f"model.{key}")) for key in _OPTIMISERS if node.get(key)}
    with on_meta():
        family = build(node | probes, where="model", shared=shared)
    if not isinstance(family, Family):
        raise UserError(f"model._target_={cfg.model._target_} is not a family")
    family.check_training(num_updates=cfg.trainer.max_steps, num_images=cfg.facts.num_train_images)
    family.to("meta")  # so that it knows where it is
    family.configure_optimizers()
    return PlannedModel(
        family=family,
        codec=None if codec is None or "_target_" in cfg.codec else codec,
        optimiser_bytes=sum(probe.bytes for probe in probes.values()),
        image_shape=tuple(cfg.facts.image_shape),
        num_labels=cfg.facts.num_labels,
        num_train_images=cfg.facts.num_train_images,
        notes=notes,
    )


def _state_data(cfg: DictConfig, notes: list[str]) -> None:
    """Write what the data set knows of itself without reading a file, unless the configuration says it."""
    kind = locate(cfg.data._target_, COMMAND_LINE, "data")
    if not (isinstance(kind, type) and issubclass(kind, ImageData)):
        raise UserError(f"data._target_={cfg.data._target_} is not a data set")
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    declared, facts = kind.declared(defaults | plain(cfg, "data")), cfg.facts
    if None in facts.image_shape:
        if declared is None:
            raise UserError("a plan reads no data: give facts.image_shape=[C,H,W]")
        facts.image_shape = list(declared.image_shape)
    for key in ("num_labels", "num_train_images"):
        if facts[key] is None:
            facts[key] = getattr(declared, key, None)
    if facts.num_levels is None:
        facts.num_levels = 256 if declared is None else declared.num_levels
    if facts.num_labels is None and any(
        "${facts.num_labels}" in OmegaConf.to_yaml(cfg[key])
        for key in ("model", "network", "condition")
        if OmegaConf.is_config(cfg.get(key))
    ):
        facts.num_labels = _ASSUMED_LABELS
        notes.append(f"{_ASSUMED_LABELS} labels are assumed: facts.num_labels=N says otherwise")


def _codec(cfg: DictConfig, notes: list[str]) -> Codec:
    """The codec, fresh: built as named, or as its recipe says, or known by the shape of its codes alone."""
    facts, node = cfg.facts, cfg.codec
    if node.get("experiment") == _UNKNOWN:
        if not facts.code_shape or None in facts.code_shape:
            raise UserError(
                "a plan reads no codec: give codec.experiment=RECIPE, or facts.code_shape=[h,w] and facts.num_classes=K"
            )
        notes.append("the codec's own weights are not counted: no recipe of it is named")
        return _Declared(facts.image_shape, facts.code_shape, facts.num_classes)
    recipe = plain(cfg, "codec")
    if "_target_" not in node:
        stage = compose("train", overrides=[f"experiment={node.experiment}", *map(str, node.overrides), "run.id=plan"])
        OmegaConf.update(stage, "facts", {"image_shape": facts.image_shape, "num_labels": facts.num_labels})
        recipe = plain(stage, "model.codec")
    with on_meta():
        codec = build(recipe, where="codec")
        if node.get("read_as"):
            codec = build({"_target_": node.read_as, "codec": codec}, where="codec.read_as")
    assert isinstance(codec, Codec)
    return codec


class _Declared(Codec):
    """Stands in for a codec of which nothing but its shapes is known."""

    def __init__(self, image_shape: Sequence[int], code_shape: Sequence[int], num_classes: int | None) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = (channels, height, width)
        self.code_shape = tuple(code_shape)
        self.num_classes = num_classes

    def encode(self, images: Tensor, noise: NoiseSource | None = None) -> Tensor:
        dtype = images.dtype if self.num_classes is None else torch.int64
        return images.new_empty((len(images), *self.code_shape), dtype=dtype)

    def decode(self, code: Tensor) -> Tensor:
        return code.new_empty((len(code), *self.image_shape), dtype=self.scale.dtype)
