"""The model of a run on the meta device: without its data, its first stage's weights, or any weights at all."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from trilemma.codecs.base import Codec, flatten
from trilemma.config import schema
from trilemma.config.build import build
from trilemma.config.check import check_config
from trilemma.config.nodes import plain
from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.data.base import DeclaredData, ImageData
from trilemma.data.batch import Batch
from trilemma.errors import UserError
from trilemma.models.base import Family
from trilemma.planning.estimates.meta import on_meta
from trilemma.planning.estimates.sizes import OptimiserProbe
from trilemma.processes.noise import NoiseSource
from trilemma.runs.facts import state_codec, state_process

_UNKNOWN = "not-needed-for-a-plan"
_ASSUMED_LABELS = 1000
_OPTIMISERS = ("optimizer", "discriminator_optimizer")


@dataclass
class PlannedModel:
    """A family on the meta device.

    Attributes:
        model: The family.
        codec: Its codec, if it has one.
        has_codes: Whether it trains on codes that were computed before.
        optimiser: Its class, or classes.
        optimiser_bytes: What its states take.
        image_shape: (C, H, W).
        num_labels: Labels of the data; None where there are none.
        num_train_images: Where known.
        notes: What was assumed, and what was left out.
    """

    model: Family
    codec: Codec | None
    has_codes: bool
    optimiser: str
    optimiser_bytes: int
    image_shape: tuple[int, int, int]
    num_labels: int | None
    num_train_images: int | None
    notes: list[str] = field(default_factory=list)

    def batch(self, size: int) -> Batch:
        """A batch of so many images, on the meta device."""
        image = torch.empty(size, *self.image_shape, device="meta")
        batch = Batch(index=torch.zeros(size, dtype=torch.int64, device="meta"))
        if self.has_codes:
            assert self.codec is not None
            with torch.no_grad():
                code = self.codec.cache(image)
            batch["code"] = code if code.is_floating_point() else flatten(code)
        else:
            batch["image"] = image
        if self.num_labels is not None:
            batch["label"] = torch.zeros(size, dtype=torch.int64, device="meta")
        return batch


def plan_model(cfg: DictConfig) -> PlannedModel:
    """Check a configuration and build its model on the meta device.

    The facts come from the configuration (`facts.image_shape`, ...), from the data set where it knows them without
    reading a file, and from the recipe of the first stage.

    Raises:
        UserError: If the configuration is wrong, or a fact is missing.
    """
    _fill_missing(cfg)
    check_config(cfg, schema.TRAIN)
    notes: list[str] = []
    declared = _declared(cfg)
    _declare_data(cfg, declared, notes)
    has_codes = OmegaConf.select(cfg, "codec") is not None and "_target_" not in cfg.codec
    codec = None
    if OmegaConf.select(cfg, "codec") is not None:
        codec = _codec(cfg, notes)
        state_codec(cfg, codec)
    process = state_process(cfg, codec)  # off the meta device: its tables are looked at while it is built

    node = plain(cfg, "model")
    shared = [(plain(cfg, key), part) for key, part in (("codec", codec), ("process", process)) if part is not None]
    probes = {key: OptimiserProbe(build(node[key], where=f"model.{key}")) for key in _OPTIMISERS if node.get(key)}
    node |= probes
    with on_meta():
        model = build(node, where="model", shared=shared)
    if not isinstance(model, Family):
        raise UserError(f"model._target_={cfg.model._target_} is not a family")
    model.to("meta")  # so that it knows where it is
    model.configure_optimizers()
    return PlannedModel(
        model=model,
        codec=codec,
        has_codes=has_codes,
        optimiser=", ".join(dict.fromkeys(probe.name for probe in probes.values())),
        optimiser_bytes=sum(probe.bytes() for probe in probes.values()),
        image_shape=tuple(cfg.facts.image_shape),
        num_labels=cfg.facts.num_labels,
        num_train_images=_num_train_images(cfg, declared),
        notes=notes,
    )


def _fill_missing(cfg: DictConfig) -> None:
    """Where the data lie and which codec is taken are not asked for."""
    for group in ("data", "codec"):
        node = OmegaConf.to_container(cfg[group], resolve=False) if OmegaConf.is_config(cfg.get(group)) else None
        for key, value in node.items() if isinstance(node, dict) else ():
            if value == "???":
                OmegaConf.update(cfg, f"{group}.{key!s}", _UNKNOWN)


def _declared(cfg: DictConfig) -> DeclaredData | None:
    """What the data set knows of itself without reading a file."""
    kind = locate(cfg.data._target_, COMMAND_LINE, "data")
    if not (isinstance(kind, type) and issubclass(kind, ImageData)):
        raise UserError(f"data._target_={cfg.data._target_} is not a data set")
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items() if p.default is not p.empty}
    return kind.declared(defaults | plain(cfg, "data"))


def _declare_data(cfg: DictConfig, declared: DeclaredData | None, notes: list[str]) -> None:
    """Write the shape of the images and the number of labels, unless the configuration says them."""
    facts = cfg.facts
    if any(side is None for side in facts.image_shape):
        if declared is None:
            raise UserError("a plan reads no data: give facts.image_shape=[C,H,W]")
        facts.image_shape = list(declared.image_shape)
    if facts.num_labels is None and declared is not None:
        facts.num_labels = declared.num_labels
    if facts.num_labels is None and _asks_for_labels(cfg):
        facts.num_labels = _ASSUMED_LABELS
        notes.append(f"{_ASSUMED_LABELS} labels are assumed: facts.num_labels=N says otherwise")


def _asks_for_labels(cfg: DictConfig) -> bool:
    nodes = [
        OmegaConf.to_yaml(cfg[key]) for key in ("model", "network", "condition") if OmegaConf.is_config(cfg.get(key))
    ]
    return any("${facts.num_labels}" in text for text in nodes)


def _num_train_images(cfg: DictConfig, declared: DeclaredData | None) -> int | None:
    """Images that are trained on, where that is known without reading them."""
    if cfg.facts.num_train_images is not None:
        return int(cfg.facts.num_train_images)
    return None if declared is None else declared.num_train_images


def _codec(cfg: DictConfig, notes: list[str]) -> Codec:
    """The codec, fresh: built as named, or as its recipe says, or known by the shape of its codes alone."""
    node = cfg.codec
    if "_target_" in node:
        with on_meta():
            codec = build(plain(cfg, "codec"), where="codec")
        assert isinstance(codec, Codec)
        return codec
    if node.experiment == _UNKNOWN:
        if not cfg.facts.code_shape or None in cfg.facts.code_shape:
            raise UserError(
                "a plan reads no codec: give codec.experiment=RECIPE, or facts.code_shape=[h,w] and facts.num_classes=K"
            )
        notes.append("the codec's own weights are not counted: no recipe of it is named")
        return _Declared(cfg.facts.image_shape, cfg.facts.code_shape, cfg.facts.num_classes)
    recipe = compose("train", overrides=[f"experiment={node.experiment}", *map(str, node.overrides), "run.id=plan"])
    with_facts = {"image_shape": cfg.facts.image_shape, "num_labels": cfg.facts.num_labels}
    OmegaConf.update(recipe, "facts", with_facts)
    with on_meta():
        codec = build(plain(recipe, "model.codec"), where="codec")
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
        """Codes of the right shape."""
        dtype = images.dtype if self.num_classes is None else torch.int64
        return images.new_empty((len(images), *self.code_shape), dtype=dtype)

    def decode(self, code: Tensor) -> Tensor:
        """Images of the right shape."""
        return code.new_empty((len(code), *self.image_shape), dtype=self.scale.dtype)
