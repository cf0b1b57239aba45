"""Small options of config groups that share the file `conf/options.yaml`."""

from __future__ import annotations

from functools import cache
from typing import Any

from trilemma.config import CONF

_FILE = CONF / "options.yaml"
FROM_CHECKPOINT = "from_checkpoint"
"""The option of `sampler` that is a checkpoint's own sampler, with single settings changed."""


@cache
def small_options() -> dict[str, dict[str, dict[str, Any]]]:
    """Load `conf/options.yaml`: group -> option -> node, interpolations unresolved."""
    from omegaconf import OmegaConf

    groups: Any = OmegaConf.to_container(OmegaConf.load(_FILE), resolve=False)
    return {group: dict(options) for group, options in groups.items()}


def register_options() -> None:
    """Register the small options with Hydra, beside those that are files."""
    from hydra.core.config_store import ConfigStore

    # Hydra copies its sources before every look at a group, 200 times for --help, and with them this store, which nobody changes.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    for group, options in small_options().items():
        for name, node in options.items():
            store.store(group=group, name=name, node=node, provider=_FILE.name)
    store.store(group="sampler", name=FROM_CHECKPOINT, node=dict.fromkeys(sampler_settings()), provider="conf/sampler")


def sampler_settings() -> list[str]:
    """List the settings of samplers that may be overridden for a checkpoint's own sampler, without those that choose a sampler."""
    nodes = group_nodes("sampler").values()
    return list(dict.fromkeys(key for node in nodes for key in node if not key.startswith("_")))


def group_nodes(group: str) -> dict[str, dict[str, Any]]:
    """Load the options of a config group with their nodes, without defaults lists: small ones and files.

    Args:
        group: As on the command line, `process/schedule`; groups below it are not looked into.
    """
    from omegaconf import OmegaConf

    nodes = dict(small_options().get(group, {}))
    for path in (CONF / group).glob("*.yaml"):
        node: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        nodes[path.stem] = {key: value for key, value in (node or {}).items() if key != "defaults"}
    return dict(sorted(nodes.items()))


def all_groups() -> list[str]:
    """List every config group, sorted."""
    return sorted({*small_options(), *(str(path.relative_to(CONF)) for path in CONF.rglob("*") if path.is_dir())})
