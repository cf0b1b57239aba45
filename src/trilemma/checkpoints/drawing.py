"""Draw the images of a sampling setup, and lay them out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trilemma.checkpoints.loaded import LoadedModel
from trilemma.checkpoints.sampling_setup import SamplingSetup, require_generator
from trilemma.data.images import to_uint8
from trilemma.distributed.ranks import raise_if_stopped
from trilemma.evaluation.protocol import Machine
from trilemma.figures.images import make_grid, short_name


def draw(loaded: LoadedModel, setup: SamplingSetup, indices: range) -> Tensor:
    """Draw the images of some indices, uint8 [n, C, H, W] on the CPU."""
    images = require_generator(loaded.model, loaded.path).sample(
        len(indices),
        condition=None if setup.raw is None else setup.raw[indices.start : indices.stop],
        sampler=setup.sampler,
        guidance=setup.guidance,
        seed=setup.seed,
        first_index=indices.start,
        on_step=raise_if_stopped,
    )
    return to_uint8(images).cpu()


def drawing_digest(settings: Mapping[str, Any], device: str) -> str:
    """Hash the settings of drawn images, and the machine, on which their last bits depend."""
    content = json.dumps([settings, dataclasses.asdict(Machine.here(device))], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def sample_grid(images: Tensor, raw: list[Any] | None, *, num_columns: int = 10, num_rows: int = 10) -> Image.Image:
    """Lay out uint8 images [N, C, H, W] as a grid; with raw conditions, one each, a row holds one condition and its name."""
    if raw is None:
        return make_grid(images[: num_rows * num_columns], num_columns)
    rows: list[Tensor] = []
    names: list[str] = []
    values = sorted(set(raw))
    rows_per_value = max(1, num_rows // len(values))
    for value in values[:num_rows]:
        found = images[torch.tensor([i for i, own in enumerate(raw) if own == value])]
        for row in torch.split(found, num_columns)[:rows_per_value]:
            blank = row.new_full((num_columns - len(row), *row.shape[1:]), 255)
            rows.append(torch.cat([row, blank]))
            names.append(short_name(value))
    return make_grid(torch.cat(rows), num_columns, row_labels=names)
