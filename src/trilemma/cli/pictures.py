"""What `sample.py` draws beside samples, chosen by `task`: a diffusion model's trajectory, the latents of a model, reconstructions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from torch import Tensor

from trilemma.capabilities import supports
from trilemma.checkpoints.loaded import LoadedModel, data_of
from trilemma.checkpoints.settings import CLASSIFIER_FREE
from trilemma.cli.sample import strengths
from trilemma.cli.samples import open_checkpoint, output_folder, write_settings
from trilemma.data.base import Split
from trilemma.data.images import to_float, to_uint8
from trilemma.errors import UserError
from trilemma.evaluation.metrics.reconstruction import psnr_pooled, squared_errors
from trilemma.figures.images import make_grid, save_gif, save_png
from trilemma.figures.interpolation import images_from, interpolate, latents_of
from trilemma.figures.latents import interpolate_latents, latent_scatter, manifold
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
from trilemma.models.capabilities import DecodesLatents, EncodesLatents, Reconstructs
from trilemma.models.diffusion import ShowsTrajectory
from trilemma.models.generator import ImageGenerator
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.guidance import ClassifierFree

NUM_COLUMNS, NUM_FRAMES, NUM_ROWS = 11, 31, 3
_WEIGHTS = even_times(7)
_INVERSION_STEPS = 50
_SCATTERED, _ENCODED_AT_A_TIME = 2000, 250  # test images
Drawn = tuple[list[Path], str]
"""Files that were written, and a remark for the line that names them."""


def draw_picture(cfg: DictConfig) -> None:
    """Draw the picture that `task` names.

    Raises:
        UserError: For anything that the user can fix, before drawing starts.
    """
    loaded = open_checkpoint(cfg)
    for task in (one for one in _TASKS if one.name == cfg.task):
        if supports(loaded.model, task.capability):
            files, remark = task.draw(cfg, loaded, loaded.model)
            break
    else:
        needed = " or ".join(one.needs for one in _TASKS if one.name == cfg.task)
        raise UserError(
            f"task={cfg.task} is for {needed}, and {cfg.ckpt} holds a {type(loaded.model).__name__}: leave out task"
        )
    print(f"{cfg.task}: {', '.join(map(str, files))}{remark and f' ({remark})'}")


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
    first, last, raw = _pairs(cfg, loaded)
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


def _manifold(cfg: DictConfig, loaded: LoadedModel, model: DecodesLatents) -> Drawn:
    num_side = math.isqrt(cfg.num_images)
    if num_side**2 != cfg.num_images:
        raise UserError(f"num_images={cfg.num_images}: a manifold is a square of images, as {num_side**2} are")
    raw = loaded.setups[0].raw
    if raw is not None and len(set(raw)) > 1:
        raise UserError("a manifold is drawn under one condition: name it, as in condition.label=7")
    with _waiting():
        images = manifold(model, num_side, None if raw is None else raw[0]).cpu()
    folder = output_folder(cfg, loaded, loaded.setups[0], "manifold-")
    files = _write(cfg, loaded, folder, make_grid(images, num_side, padding=0))
    return [*files, *_scatter(cfg, loaded, folder)], ""


def _scatter(cfg: DictConfig, loaded: LoadedModel, folder: Path) -> list[Path]:
    """Where the test images lie, of a model that encodes images, and of data with labels."""
    model = loaded.model
    if not supports(model, EncodesLatents):
        return []
    data = data_of(loaded.config, cfg.data.root)
    split = data.split("test")
    if split.labels is None or data.label_names is None:
        return []
    images, labels = to_float(split.images[:_SCATTERED]), split.labels[:_SCATTERED]
    z = torch.cat([model.to_latents(part) for part in torch.split(images, _ENCODED_AT_A_TIME)])
    save_png(latent_scatter(z, labels, data.label_names), folder / "scatter.png")
    return [folder / "scatter.png"]


def _interpolate_latents(cfg: DictConfig, loaded: LoadedModel, model: EncodesLatents) -> Drawn:
    first, last, raw = _pairs(cfg, loaded)
    folder = output_folder(cfg, loaded, loaded.setups[0], "interpolate-")
    between = interpolate_latents(model, first, last, _WEIGHTS, raw).cpu()
    return _write(cfg, loaded, folder, interpolation_picture(first, between, last, _WEIGHTS)), ""


def _reconstruct(cfg: DictConfig, loaded: LoadedModel, model: Reconstructs) -> Drawn:
    images = to_float(_test_split(cfg, loaded, cfg.num_images).images[: cfg.num_images])
    device = next(loaded.model.parameters()).device
    folder = output_folder(cfg, loaded, loaded.setups[0], "reconstruct-")
    with torch.no_grad():
        pairs = torch.cat([images, model.reconstruct(images.to(device)).cpu()])
    return _write(cfg, loaded, folder, make_grid(pairs, len(images), row_labels=["data", "model"])), ""


class _Task(NamedTuple):
    """A picture: its name, what a family must be able to do, in words too, and what draws it."""

    name: str
    capability: Any
    needs: str
    draw: Callable[[DictConfig, LoadedModel, Any], Drawn]


_DIFFUSION = "a diffusion model of continuous codes"
_TASKS = (
    _Task("forward", ShowsTrajectory, _DIFFUSION, _forward),
    _Task("reverse", ShowsTrajectory, _DIFFUSION, _reverse),
    _Task("denoise", ShowsTrajectory, _DIFFUSION, _denoise),
    _Task("interpolate", ShowsTrajectory, _DIFFUSION, _interpolate),
    _Task("interpolate", EncodesLatents, "a VAE", _interpolate_latents),
    _Task("invert", ShowsTrajectory, _DIFFUSION, _invert),
    _Task("reconstruct", Reconstructs, "a model that encodes images and decodes them", _reconstruct),
    _Task("manifold", DecodesLatents, "a VAE or a GAN with 2 latents", _manifold),
)


def pairs_of(labels: Tensor | None, wanted: Sequence[int] | None, num: int) -> Tensor:
    """Positions of the two images of each pair, int64 [num, 2], no image twice.

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


def _pairs(cfg: DictConfig, loaded: LoadedModel) -> tuple[Tensor, Tensor, Any]:
    """Pairs of test images, [num_images, C, H, W] each, and their conditions."""
    setup, split = loaded.setups[0], _test_split(cfg, loaded, 2 * cfg.num_images)
    pairs = pairs_of(split.labels, None if setup.labels is None else setup.labels.tolist(), cfg.num_images)
    first, last = (to_float(split.images[pairs[:, i]]) for i in (0, 1))
    return first, last, setup.raw


def _test_split(cfg: DictConfig, loaded: LoadedModel, num: int) -> Split:
    """The test images that a checkpoint's data set has, `num` at least."""
    split = data_of(loaded.config, cfg.data.root).split("test")
    if len(split) < num:
        raise UserError(f"num_images={cfg.num_images} needs {num} test images, and the data set has {len(split)}")
    return split


def _own(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory, split: Split) -> Any:
    """The condition of the first test images: what the command line asks for, else their own."""
    (setup,) = loaded.setups
    if cfg.condition.caption is not None or cfg.condition.label is not None:
        return setup.raw
    if setup.guidance.reads_condition and split.labels is not None:
        return split.labels[: cfg.num_images].tolist()
    return own_condition(model.condition, split, cfg.num_images)


def sampler_of(loaded: LoadedModel) -> DenoisingSampler:
    """The sampler of the one setup, of a family that has one."""
    sampler = loaded.setups[0].sampler
    assert isinstance(sampler, DenoisingSampler)
    return sampler


def _inverting(cfg: DictConfig, loaded: LoadedModel, model: ShowsTrajectory) -> LoadedModel:
    """As loaded, with DDIM without clipping in the place of the sampler, and no guidance unless a scale was asked for."""
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
    """How well the images came back."""
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
