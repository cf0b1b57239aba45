"""Images drawn from a checkpoint and written in the field's formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from trilemma.atomic import atomic_write_text
from trilemma.checkpoints.drawing import draw, drawing_digest, sample_grid
from trilemma.checkpoints.guiding_classifier import guiding_classifier
from trilemma.checkpoints.loaded import LoadedModel, load_model
from trilemma.checkpoints.sampling_setup import SamplingSetup, require_generator, sampling_setup
from trilemma.checkpoints.settings import set_threads
from trilemma.distributed.kept_blocks import discard
from trilemma.distributed.ranks import Ranks
from trilemma.figures.images import save_png, save_samples_npz, to_pil
from trilemma.quiet import quieten
from trilemma.runs.directory import prepare


def draw_samples(cfg: DictConfig, ranks: Ranks) -> None:
    """Draw `num_images` and write samples.npz, grid.png, single PNGs and settings.json.

    Raises:
        UserError: For anything that the user can fix, before drawing starts.
    """
    loaded = ranks.rank_zero_first(lambda: open_checkpoint(cfg))
    (setup,) = loaded.setups
    folder = Path(ranks.first(lambda: str(output_folder(cfg, loaded, setup))))
    digest = ranks.first(lambda: _digest(cfg, loaded, setup))
    kept = folder / f".drawn-{digest}"  # by an earlier run of this command that was stopped
    parts = ranks.map(
        lambda indices: draw(loaded, setup, indices), cfg.num_images, block=cfg.batch_size, keep=kept, title="Sampling"
    )

    def write() -> None:
        _write(folder, torch.cat(parts), setup, num_png=cfg.num_png)
        write_settings(cfg, setup, folder)
        discard(kept)
        print(f"{cfg.num_images} images: {folder / 'grid.png'}, {folder / 'samples.npz'}")

    ranks.first(write)


def open_checkpoint(cfg: DictConfig) -> LoadedModel:
    """Load a checkpoint with the one setup of the command line.

    Raises:
        UserError: For anything that the user can fix.
    """
    quieten()
    set_threads(cfg)
    loaded = load_model(cfg, cfg.ckpt)
    model = require_generator(loaded.model, cfg.ckpt)
    classifier = guiding_classifier(cfg, model, loaded.config)
    return replace(loaded, setups=(sampling_setup(cfg, model, loaded.config, classifier),))


def output_folder(cfg: DictConfig, loaded: LoadedModel, setup: SamplingSetup, prefix: str = "") -> Path:
    """Give the folder to write to, made and seen to be writable: `output_dir`, else named after the settings.

    Raises:
        UserError: If it cannot be written.
    """
    folder = Path(cfg.output_dir) if cfg.output_dir else loaded.run_dir / "samples" / (prefix + setup.name)
    prepare(folder)
    return folder


def write_settings(cfg: DictConfig, setup: SamplingSetup, folder: Path, more: Mapping[str, Any] | None = None) -> None:
    """Write settings.json, with `more` at its end."""
    settings = {
        "checkpoint": str(cfg.ckpt),
        "weights": cfg.weights,
        "sampler": setup.sampler_node,
        "guidance": setup.guidance_node,
        "condition": setup.condition,
        "seed": cfg.seed,
        **(more or {}),
    }
    atomic_write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")


def _digest(cfg: DictConfig, loaded: LoadedModel, setup: SamplingSetup) -> str:
    """Of all that the images depend on."""
    state = loaded.path.stat()
    settings = {
        "checkpoint": [str(cfg.ckpt), state.st_mtime_ns, state.st_size, loaded.config["weights"]],
        "sampling": [setup.sampler_node, setup.guidance_node],
        "images": [cfg.num_images, cfg.batch_size, cfg.seed, setup.raw],
    }
    return drawing_digest(settings, cfg.device)


def _write(folder: Path, images: Tensor, setup: SamplingSetup, *, num_png: int) -> None:
    """Write the npz, the first single PNGs and a grid of up to ten rows."""
    save_samples_npz(folder / "samples.npz", images, setup.labels)
    (folder / "png").mkdir(exist_ok=True)
    for old in (folder / "png").glob("[0-9]" * 6 + ".png"):  # of an earlier command that drew into this folder
        old.unlink()
    for i, image in enumerate(to_pil(images[:num_png])):
        save_png(image, folder / "png" / f"{i:06d}.png")
    save_png(sample_grid(images, setup.raw), folder / "grid.png")
