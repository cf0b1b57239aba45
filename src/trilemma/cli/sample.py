"""What `sample.py` does: draw images from a checkpoint and write them in the field's formats."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from trilemma.atomic import atomic_write_text
from trilemma.checkpoints.fits import check_fits
from trilemma.checkpoints.guiding_classifier import guiding_classifier
from trilemma.checkpoints.load import load_with_config
from trilemma.checkpoints.settings import (
    build_sampling,
    labels_for,
    require_samples,
    sampling_settings,
    set_threads,
    settings_name,
    settle_batch_size,
)
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.data.images import to_uint8
from trilemma.distributed.crew import Crew, raise_if_stopped
from trilemma.distributed.kept_blocks import discard
from trilemma.errors import UserError
from trilemma.evaluation.protocol import Machine
from trilemma.figures.images import make_grid, save_png, save_samples_npz, to_pil
from trilemma.models.base import Family, Samples
from trilemma.quiet import quieten
from trilemma.runs.directory import prepare
from trilemma.samplers.base import Sampler
from trilemma.samplers.guidance import Guidance

NUM_IMAGES = 100


@dataclass(frozen=True)
class Opened:
    """A checkpoint, and how it is to be sampled.

    Attributes:
        family: The model, with the weights that were asked for.
        config: What the checkpoint says of itself.
        sampler: The checkpoint's own, changed where the command line says so.
        guidance: Likewise.
        sampler_node: What builds the sampler, in plain containers.
        guidance_node: Likewise.
    """

    family: Family
    config: dict[str, Any]
    sampler: Sampler
    guidance: Guidance
    sampler_node: dict[str, Any]
    guidance_node: dict[str, Any]

    @property
    def num_labels(self) -> int | None:
        """See `conditioned_on`."""
        return conditioned_on(self.config, self.guidance)

    def folder(self, cfg: DictConfig, prefix: str = "") -> Path:
        """Where to write, made and seen to be writable: `output_dir`, else named after the settings.

        Raises:
            UserError: If it cannot be written.
        """
        name = prefix + settings_name(cfg, self.config, self.sampler_node, self.guidance_node)
        folder = Path(cfg.output_dir) if cfg.output_dir else run_dir_of(Path(cfg.ckpt)) / "samples" / name
        prepare(folder)
        return folder

    def write_settings(self, cfg: DictConfig, folder: Path, more: Mapping[str, Any] | None = None) -> None:
        """Write settings.json, with `more` at its end."""
        settings = {
            "checkpoint": str(cfg.ckpt),
            "weights": cfg.weights,
            "sampler": self.sampler_node,
            "guidance": self.guidance_node,
            "seed": cfg.seed,
            **(more or {}),
        }
        atomic_write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")


def open_checkpoint(cfg: DictConfig) -> Opened:
    """Load a checkpoint with the sampler and guidance of the command line.

    Raises:
        UserError: For anything that the user can fix.
    """
    quieten()
    set_threads(cfg)
    settle_batch_size(cfg)
    if cfg.num_images < 1:
        raise UserError(f"num_images={cfg.num_images} must be at least 1")
    family, config = load_with_config(cfg.ckpt, weights=cfg.weights, device=cfg.device)
    require_samples(family, cfg.ckpt)
    if cfg.condition.caption is not None and cfg.condition.label is not None:
        raise UserError("give condition.label or condition.caption, not both")
    classifier = guiding_classifier(cfg, family, config)
    sampler_node, guidance_node = sampling_settings(cfg, config, classifier)
    sampler, guidance = build_sampling(sampler_node, guidance_node, classifier)
    check_fits(sampler, family)
    return Opened(family, config, sampler, guidance, sampler_node, guidance_node)


def sample(cfg: DictConfig, crew: Crew) -> None:
    """Draw `num_images` and write samples.npz, grid.png, single PNGs and settings.json.

    Raises:
        UserError: For anything that the user can fix, before drawing starts.
    """
    check_config(cfg, schema.SAMPLE)
    if cfg.num_images is None:
        cfg.num_images = NUM_IMAGES
    drawing = open_drawing(cfg)
    folder = drawing.opened.folder(cfg)
    crew.prepare(drawing, open_drawing, cfg)
    kept = folder / f".drawn-{drawing.digest}"  # by an earlier run of this command that was stopped
    images = torch.cat(crew.spread(draw_block, cfg.num_images, block=cfg.batch_size, keep=kept, title="Sampling"))
    labels = torch.tensor(drawing.condition) if isinstance(drawing.condition, list) else None
    write(folder, images, labels, num_png=cfg.num_png)
    drawing.opened.write_settings(cfg, folder)
    discard(kept)
    print(f"{len(images)} images: {folder / 'grid.png'}, {folder / 'samples.npz'}")


@dataclass(frozen=True)
class Drawing:
    """A checkpoint that is being sampled.

    Attributes:
        cfg: The command.
        opened: The checkpoint.
        condition: One label an image, one caption for all, or None.
    """

    cfg: DictConfig
    opened: Opened
    condition: Any

    @property
    def digest(self) -> str:
        """Of all that the images depend on."""
        state = Path(self.cfg.ckpt).stat()
        settings = {
            "checkpoint": [str(self.cfg.ckpt), state.st_mtime_ns, state.st_size, self.opened.config["weights"]],
            "sampling": [self.opened.sampler_node, self.opened.guidance_node],
            "images": [self.cfg.num_images, self.cfg.batch_size, self.cfg.seed, self.condition],
        }
        return drawing_digest(settings, self.cfg.device)


def drawing_digest(settings: Mapping[str, Any], device: str) -> str:
    """Names drawn images by their settings and by the machine, on which their last bits depend."""
    content = json.dumps([settings, dataclasses.asdict(Machine.here(device))], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def open_drawing(cfg: DictConfig) -> Drawing:
    """What draws the images that are asked for; raises as `open_checkpoint` does."""
    opened = open_checkpoint(cfg)
    condition: Any = cfg.condition.caption
    if condition is None:
        condition = labels_for(cfg.num_images, cfg.condition.label, opened.num_labels)
    opened.guidance.check(condition)
    return Drawing(cfg, opened, condition)


def draw_block(drawing: Drawing, indices: range, rows: None) -> Tensor:
    """Some of the images, uint8 [n, C, H, W] on the CPU."""
    opened, cfg = drawing.opened, drawing.cfg
    model = require_samples(opened.family, cfg.ckpt)
    return draw(model, drawing.condition, indices, opened.sampler, opened.guidance, seed=cfg.seed)


def conditioned_on(config: dict[str, Any], guidance: Guidance | None = None) -> int | None:
    """Number of labels that a guidance reads itself, else that the model was conditioned on; None where labels mean nothing."""
    if guidance is not None and guidance.num_labels is not None:
        return guidance.num_labels
    condition = config["model"].get("condition") or {}
    number: int | None = condition.get("num_labels")
    return number


def run_dir_of(ckpt: Path) -> Path:
    """The run directory a checkpoint lies in; its own folder where it was moved elsewhere."""
    folder = ckpt.absolute().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return Path(os.path.relpath(folder))


def draw(model: Samples, condition: Any, indices: range, sampler: Sampler, guidance: Guidance, *, seed: int) -> Tensor:
    """Draw the images of some indices, uint8 [n, C, H, W] on the CPU; of a list, the condition is that of the index."""
    raw = condition[indices.start : indices.stop] if isinstance(condition, list) else condition
    images = model.sample(
        len(indices),
        condition=raw,
        sampler=sampler,
        guidance=guidance,
        seed=seed,
        first_index=indices.start,
        on_step=raise_if_stopped,
    )
    return to_uint8(images).cpu()


def write(folder: Path, images: Tensor, labels: Tensor | None, *, num_png: int) -> None:
    """Write the npz, the first single PNGs and a grid of up to ten rows."""
    save_samples_npz(folder / "samples.npz", images, labels)
    (folder / "png").mkdir(exist_ok=True)
    for i, image in enumerate(to_pil(images[:num_png])):
        save_png(image, folder / "png" / f"{i:06d}.png")
    save_png(grid_of(images, labels), folder / "grid.png")


def grid_of(images: Tensor, labels: Tensor | None, *, num_columns: int = 10, num_rows: int = 10) -> Image.Image:
    """A grid of uint8 images [N, C, H, W]; with labels int64 [N], each row holds one class and is named after it."""
    if labels is None:
        return make_grid(images[: num_rows * num_columns], num_columns)
    rows: list[Tensor] = []
    names: list[str] = []
    of_class = {label: images[labels == label] for label in sorted(set(labels.tolist()))}
    rows_per_class = max(1, num_rows // len(of_class))
    for label, found in list(of_class.items())[:num_rows]:
        for row in torch.split(found, num_columns)[:rows_per_class]:
            blank = row.new_full((num_columns - len(row), *row.shape[1:]), 255)
            rows.append(torch.cat([row, blank]))
            names.append(str(label))
    return make_grid(torch.cat(rows), num_columns, row_labels=names)
