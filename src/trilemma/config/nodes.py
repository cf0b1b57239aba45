"""Read nodes of a composed configuration."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def plain(cfg: DictConfig, key: str) -> Any:
    """Convert the resolved node `key` to plain containers."""
    node = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def drop_recipe(cfg: DictConfig) -> None:
    """Forget an experiment's first-stage recipe where the command line chose a codec that needs none (codec=pixels_256)."""
    if OmegaConf.select(cfg, "codec._target_") is not None:
        OmegaConf.set_struct(cfg, False)
        for key in ("checkpoint", "experiment", "overrides", "read_as"):
            cfg.codec.pop(key, None)
        OmegaConf.set_struct(cfg, True)
