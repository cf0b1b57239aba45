"""Experiments and models of `conf/`: which experiment trains which model, and what makes one of them small enough for a test."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from trilemma.cli.main import register_resolvers
from trilemma.config import CONF

EXPERIMENTS = sorted(
    name
    for path in (CONF / "experiment").rglob("*.yaml")
    if not (name := str(path.relative_to(CONF / "experiment").with_suffix(""))).startswith("oracle/")
)
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))

Scale = Literal["tiny", "native"]


@dataclass(frozen=True)
class Case:
    """One training: an experiment, and changes to it."""

    experiment: str
    overrides: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        return "-".join([self.experiment, *self.overrides]).replace("/", "-").replace("=", "-")


# Models that no experiment chooses.
ENTRIES = {
    "discrete_diffusion": Case("demo/vq_diffusion", ("model=discrete_diffusion", "codec=pixels_2", "process=uniform")),
    "iddpm": Case("mnist/iddpm", ("model=iddpm",)),
}


def model_of(experiment: str) -> str | None:
    """The model that an experiment, or the one it is made from, chooses."""
    inherited = None
    for entry in OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml").get("defaults", ()):
        if isinstance(entry, str) and entry != "_self_":
            inherited = model_of(entry)
        elif not isinstance(entry, str) and "override /model" in entry:
            return str(entry["override /model"])
    return inherited


def case_of(model: str) -> Case | None:
    """What trains a model of `conf/model`: an entry, else an experiment that chooses it, on digits where there is one."""
    if model in ENTRIES:
        return ENTRIES[model]
    found = [name for name in EXPERIMENTS if model_of(name) == model]
    folders = ("demo", "mnist")
    found.sort(key=lambda name: (folders.index(folder) if (folder := name.split("/")[0]) in folders else 2, name))
    return Case(found[0]) if found else None


def composed(case: Case, *overrides: str) -> DictConfig:
    """What a case says before any data are read."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        arguments = [f"experiment={case.experiment}", "debug=fast", "run.id=x", *case.overrides, *overrides]
        return compose("train", overrides=arguments)


@dataclass(frozen=True)
class Size:
    """How an argument is shrunk: what the fast tests take; and what takes the place of more than `most` in the slow ones."""

    tiny: int
    most: int
    small: int

    def shrunk(self, value: int, scale: Scale) -> int:
        if scale == "tiny":
            return min(value, self.tiny)
        return self.small if value > self.most else value


_WIDTH, _BLOCKS = Size(16, 64, 32), Size(1, 2, 1)
_TRANSFORMER = {"dim": Size(32, 256, 128), "depth": Size(1, 6, 2), "num_heads": Size(2, 4, 4)}
# By class. A class that is not here is trained as it is.
SIZES: dict[str, dict[str, Size]] = {
    "UNet": {"channels": _WIDTH, "num_res_blocks": _BLOCKS},
    "UNetEncoder": {"channels": _WIDTH, "num_res_blocks": _BLOCKS},
    "TimeDiscriminator": {"channels": Size(8, 192, 48), "embedding_dim": Size(16, 128, 128)},
    "DCGenerator": {"channels": Size(8, 128, 32)},
    "DCDiscriminator": {"channels": Size(8, 128, 32)},
    "ResidualGenerator": {"channels": Size(8, 64, 32), "num_blocks": _BLOCKS},
    "ResidualDiscriminator": {"channels": Size(8, 64, 32)},
    "BidirectionalTransformer": _TRANSFORMER,
    "DiT": _TRANSFORMER,
    "VQDiffusionTransformer": {**_TRANSFORMER, "dim": Size(32, 128, 128)},
    "CausalTransformer": {**_TRANSFORMER, "dim": Size(32, 128, 128)},
    "GatedPixelCNN": {"channels": Size(6, 64, 32), "depth": Size(2, 4, 2), "head_channels": Size(6, 128, 64)},
    "PixelCNNPlusPlus": {"channels": Size(4, 32, 16), "num_blocks": Size(1, 2, 1), "num_components": Size(2, 10, 10)},
    "ConvEncoder": {"channels": _WIDTH, "num_res_blocks": _BLOCKS},
    "ConvDecoder": {"channels": _WIDTH, "num_res_blocks": _BLOCKS},
    "AttentionEncoder": {
        "channels": Size(32, 64, 32),
        "channel_mults": Size(1, 2, 1),
        "num_res_blocks": _BLOCKS,
        "latent_channels": Size(8, 64, 32),
        "out_channels": Size(8, 64, 32),
    },
    "EMAQuantizer": {"codebook_size": Size(16, 1024, 1024)},
    "PatchDiscriminator": {"channels": Size(8, 64, 16), "num_halvings": Size(2, 3, 3)},
    "SmallConvNet": {"channels": Size(8, 128, 32), "feature_dim": Size(16, 128, 128)},
    "ResidualConvNet": {"channels": Size(8, 96, 32), "feature_dim": Size(16, 128, 128)},
    "ImageFolder": {"size": Size(32, 64, 64)},
    "WebDataset": {"size": Size(32, 64, 64)},
    "LinearBeta": {"num_steps": Size(20, 100, 100)},
    "CosineBeta": {"num_steps": Size(20, 100, 100)},
    "ScaledLinearBeta": {"num_steps": Size(20, 100, 100)},
    "SampleGrid": {"num_rows": Size(2, 2, 2), "num_columns": Size(2, 2, 2)},
    "LatentWalk": {"num_rows": Size(2, 2, 2), "num_columns": Size(2, 2, 2)},
    "ReverseStrip": {"num_rows": Size(2, 2, 2), "num_images": Size(2, 2, 2)},
    "NoiseThenDenoise": {"num_images": Size(2, 2, 2)},
}
_SAMPLER = {"num_steps": Size(4, 10, 10)}  # whatever its class


def shrunk(cfg: DictConfig, scale: Scale) -> list[str]:
    """Overrides that make a configuration small enough for a CPU: arguments of the classes that it names."""
    found: dict[str, Any] = {}
    for path, node in _nodes(OmegaConf.to_container(cfg, resolve=False)):
        sizes = _SAMPLER if path == "sampler" else SIZES.get(node["_target_"].rsplit(".", 1)[-1], {})
        for key, size in sizes.items():
            value = node.get(key)
            if isinstance(value, int):
                new: Any = size.shrunk(value, scale)
            elif isinstance(value, list):
                new = [size.shrunk(each, scale) for each in value]
            else:  # not said, or taken from elsewhere
                continue
            if new != value:
                found[f"{path}.{key}"] = new
    found.update(_of_each_layer(cfg, found))
    return [f"{key}={value}".replace(" ", "") for key, value in found.items()]


def _of_each_layer(cfg: DictConfig, found: Mapping[str, Any]) -> dict[str, int]:
    """A condition that has a part for each layer of the network follows the network's new size."""
    dim, depth = OmegaConf.select(cfg, "network.dim"), OmegaConf.select(cfg, "network.depth")
    width = OmegaConf.select(cfg, "condition.embedding_dim")
    if dim is None or depth is None or width != dim * depth:
        return {}
    return {"condition.embedding_dim": found.get("network.dim", dim) * found.get("network.depth", depth)}


def _nodes(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, part in value.items():
            yield from _nodes(part, f"{path}.{key}" if path else key)
