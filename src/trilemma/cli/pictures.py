"""Pictures of a diffusion model's trajectory that `sample.py task=...` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from PIL import Image
from rich.console import Console
from torch import Tensor

from trilemma.capabilities import supports
from trilemma.checkpoints.loaded import LoadedModel, data_of
from trilemma.checkpoints.settings import CLASSIFIER_FREE
from trilemma.cli.sample import open_checkpoint, output_folder, sample, write_settings
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.data.base import Split
from trilemma.data.images import to_float, to_uint8
from trilemma.distributed.ranks import Ranks, run_on_ranks
from trilemma.errors import UserError
from trilemma.evaluation.metrics.reconstruction import psnr_pooled, squared_errors
from trilemma.figures.images import save_gif, save_png
from trilemma.figures.interpolation import images_from, interpolate, latents_of
from trilemma.figures.trajectory import (
    even_times,
    forward_states,
    images_of,
    nearest_points,
    noise_then_denoise,
    own_condition,
    predictions_of,
    reverse_trajectory,
    states_of,
)
from trilemma.figures.trajectory_pictures import (
    denoise_picture,
    forward_picture,
    interpolation_picture,
    inversion_picture,
    reverse_picture,
    trajectory_frames,
)
from trilemma.models.diffusion import ShowsTrajectory
from trilemma.models.generator import ImageGenerator
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.guidance import ClassifierFree

NUM_COLUMNS, NUM_FRAMES, NUM_ROWS = 11, 31, 3
_WEIGHTS = even_times(7)
_INVERSION_STEPS = 50
Drawn = tuple[list[Path], str]
"""Files that were written, and a remark for the line that names them."""


def run_task(cfg: DictConfig) -> None:
    """Draw samples, or the picture that `task` names. With several processes, all draw samples, and rank 0 alone draws pictures.

    Raises:
        UserError: For anything that the user can fix, before drawing starts.
    """
    run_on_ranks(lambda ranks: _run_task(cfg, ranks), str(cfg.device))


def _run_task(cfg: DictConfig, ranks: Ranks) -> None:
    check_config(cfg, schema.SAMPLE)
    if cfg.task == "samples":
        sample(cfg, ranks)
        return
    if cfg.task not in _TASKS:
        names = ["samples", *_TASKS]
        near = get_close_matches(cfg.task, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown task={cfg.task}: {hint}choose one of {', '.join(names)}")
    task, num_images = _TASKS[cfg.task]
    if cfg.num_images is None:
        cfg.num_images = num_images
    if cfg.task == "denoise":
        strengths(cfg)
    loaded = open_checkpoint(cfg)
    model = loaded.model
    if not supports(model, ShowsTrajectory):
        raise UserError(
            f"task={cfg.task} shows the trajectory of a diffusion model of continuous codes, and {cfg.ckpt} holds a "
            f"{type(model).__name__}: leave out task"
        )
    files, remark = task(cfg, loaded, model)
    print(f"{cfg.task}: {', '.join(map(str, files))}{remark and f' ({remark})'}")


def strengths(cfg: DictConfig) -> list[float]:
    """Read the strengths of `task=denoise`: one number or a list.

    Raises:
        UserError: If there is none, or one is not a number in (0, 1].
    """
    given = list(cfg.strength) if isinstance(cfg.strength, ListConfig) else [cfg.strength]
    for one in given:
        if isinstance(one, bool) or not isinstance(one, (int, float)) or not 0 < one <= 1:
            raise UserError(
                f"strength={one}: a strength is a time in (0, 1] up to which images are noised, as in strength=[0.2,0.5,0.8]"
            )
    if not given:
        raise UserError("strength=[] is empty: give times in (0, 1], as in strength=[0.2,0.5,0.8]")
    return [float(one) for one in given]


def _forward(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> Drawn:
    images = to_float(_test_split(cfg, loaded, cfg.num_images).images[: cfg.num_images])
    folder = output_folder(cfg, loaded, loaded.setups[0], "forward-")
    times = even_times(NUM_COLUMNS)
    picture = forward_picture(forward_states(model, images, times, seed=cfg.seed), times)
    return _write(cfg, loaded, folder, picture), ""


def _reverse(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> Drawn:
    raw = loaded.setups[0].raw
    folder = output_folder(cfg, loaded, loaded.setups[0], "reverse-")
    with _waiting():
        points = reverse_trajectory(
            model,
            cfg.num_images,
            raw,
            times=even_times(NUM_FRAMES),
            seed=cfg.seed,
            sampler=sampler_of(loaded),
            guidance=loaded.setups[0].guidance,
        )
        chosen = nearest_points(points, even_times(NUM_COLUMNS))
        states, predicted = states_of(model, chosen)[:NUM_ROWS], predictions_of(model, chosen)[:NUM_ROWS]
        picture = reverse_picture(states, predicted, [point.time for point in chosen])
        frames = trajectory_frames(states_of(model, points))
    files = _write(cfg, loaded, folder, picture)
    save_gif(frames, folder / "reverse.gif")
    return [*files, folder / "reverse.gif"], ""


def _denoise(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> Drawn:
    chosen = strengths(cfg)
    split = _test_split(cfg, loaded, cfg.num_images)
    images, raw = to_float(split.images[: cfg.num_images]), _own(cfg, loaded, model, split)
    folder = output_folder(cfg, loaded, loaded.setups[0], f"denoise{'+'.join(f'{strength:g}' for strength in chosen)}-")
    with _waiting():
        found = [
            noise_then_denoise(
                model,
                images,
                strength,
                raw,
                seed=cfg.seed,
                sampler=sampler_of(loaded),
                guidance=loaded.setups[0].guidance,
            ).cpu()
            for strength in chosen
        ]
    return _write(cfg, loaded, folder, denoise_picture(images, found, chosen), {"strength": chosen}), ""


def _interpolate(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> Drawn:
    loaded = _inverting(cfg, loaded, model)
    num_steps, guidance = sampler_of(loaded).num_steps, loaded.setups[0].guidance
    split = _test_split(cfg, loaded, 2 * cfg.num_images)
    raw = loaded.setups[0].raw
    asked = loaded.setups[0].labels
    pairs = pairs_of(split.labels, None if asked is None else asked.tolist(), cfg.num_images)
    first, last = (to_float(split.images[pairs[:, i]]) for i in (0, 1))
    folder = output_folder(cfg, loaded, loaded.setups[0], "interpolate-")
    with _waiting():
        between = interpolate(model, first, last, _WEIGHTS, raw, num_steps=num_steps, guidance=guidance).cpu()
    ends = torch.cat([between[:, 0], between[:, -1]])
    picture = interpolation_picture(first, between, last, _WEIGHTS)
    files = _write(cfg, loaded, folder, picture)
    return files, _returned(torch.cat([first, last]), ends, num_steps)


def _invert(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> Drawn:
    loaded = _inverting(cfg, loaded, model)
    num_steps, guidance = sampler_of(loaded).num_steps, loaded.setups[0].guidance
    split = _test_split(cfg, loaded, cfg.num_images)
    images, raw = to_float(split.images[: cfg.num_images]), _own(cfg, loaded, model, split)
    folder = output_folder(cfg, loaded, loaded.setups[0], "invert-")
    with _waiting():
        latents = latents_of(model, images, raw, num_steps=num_steps, guidance=guidance)
        back = images_from(model, latents, raw, num_steps=num_steps, guidance=guidance).cpu()
        picture = inversion_picture(images, images_of(model, latents, 1.0).cpu(), back)
    files = _write(cfg, loaded, folder, picture)
    return files, _returned(images, back, num_steps)


_Task = Callable[[DictConfig, LoadedModel, ShowsTrajectory], Drawn]
_TASKS: dict[str, tuple[_Task, int]] = {
    "forward": (_forward, 4),
    "reverse": (_reverse, 16),
    "denoise": (_denoise, 8),
    "interpolate": (_interpolate, 5),
    "invert": (_invert, 8),
}
"""What each does, and the images that its picture takes where nothing else is asked for."""


def pairs_of(labels: Tensor | None, wanted: Sequence[int] | None, num: int) -> Tensor:
    """Choose the positions of the two images of each pair, int64 [num, 2], no image twice.

    Args:
        labels: Of the images, int64 [N].
        wanted: Label of each pair, whose images both have it; None takes the first images as they come.
        num: Number of pairs.

    Raises:
        UserError: If there are too few images of a label.
    """
    if wanted is None or labels is None:
        return torch.arange(2 * num).view(2, num).T
    left = {label: (labels == label).nonzero().flatten().tolist() for label in set(wanted)}
    pairs = []
    for label in wanted:
        if len(left[label]) < 2:
            raise UserError(
                f"num_images={num}: there are too few test images of class {label} for pairs; ask for fewer pairs"
            )
        pairs.append([left[label].pop(0), left[label].pop(0)])
    return torch.tensor(pairs)


def _test_split(cfg: DictConfig, loaded: LoadedModel, num: int) -> Split:
    """Get the test split of a checkpoint's data set, checked to hold `num` images."""
    split = data_of(loaded.config, cfg.data.root).split("test")
    if len(split) < num:
        raise UserError(f"num_images={cfg.num_images} needs {num} test images, and the data set has {len(split)}")
    return split


def _own(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory, split: Split) -> Any:
    """Choose the condition of the first test images: the command line's, else their own labels."""
    (setup,) = loaded.setups
    if cfg.condition.caption is not None or cfg.condition.label is not None:
        return setup.raw
    if setup.guidance.reads_condition and split.labels is not None:
        return split.labels[: cfg.num_images].tolist()
    return own_condition(model.condition, split, cfg.num_images)


def sampler_of(loaded: LoadedModel) -> DenoisingSampler:
    """Get the sampler of the only setup, of a family that has one."""
    sampler = loaded.setups[0].sampler
    assert isinstance(sampler, DenoisingSampler)
    return sampler


def _inverting(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> LoadedModel:
    """Replace the sampler by DDIM without clipping, and set the guidance scale to 1 unless a scale was asked for."""
    process = model.process
    if not isinstance(process, GaussianProcess):
        raise UserError(f"task={cfg.task} needs a Gaussian process, not {type(process).__name__}")
    num_steps = cfg.sampler.num_steps or _INVERSION_STEPS
    if process.num_steps is not None:
        num_steps = min(num_steps, process.num_steps)
    setup = replace(
        loaded.setups[0],
        sampler=DDIM(num_steps, clip=False),
        sampler_node={"_target_": f"{DDIM.__module__}.DDIM", "num_steps": num_steps, "clip": False},
    )
    if isinstance(loaded.model, ImageGenerator):
        loaded.model.check_sampler(setup.sampler)
    if cfg.guidance.get("scale") is None:
        setup = replace(setup, guidance=ClassifierFree(1.0), guidance_node={"_target_": CLASSIFIER_FREE, "scale": 1.0})
    return replace(loaded, setups=(setup,))


def _returned(images: Tensor, back: Tensor, num_steps: int) -> str:
    """Describe how well the images were reconstructed."""
    psnr = psnr_pooled(squared_errors(to_uint8(images), to_uint8(back)))
    return f"back at {psnr:.1f} dB after {num_steps} + {num_steps} steps"


def _write(
    cfg: DictConfig, loaded: LoadedModel, folder: Path, picture: Image.Image, settings: dict[str, Any] | None = None
) -> list[Path]:
    path = folder / f"{cfg.task}.png"
    save_png(picture, path)
    write_settings(cfg, loaded.setups[0], folder, {"task": cfg.task, "num_images": cfg.num_images, **(settings or {})})
    return [path]


def _waiting() -> Any:
    return Console(stderr=True).status("Sampling")
