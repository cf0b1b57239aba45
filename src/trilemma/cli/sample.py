"""What `sample.py` does: refuse what needs no model, then draw samples, or the picture that `task` names."""

from __future__ import annotations

from difflib import get_close_matches

from omegaconf import DictConfig, ListConfig

from trilemma.checkpoints.archive import check_archive, checkpoint_in
from trilemma.cli.main import checked
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.errors import UserError

NUM_IMAGES = {
    "samples": 100,
    "forward": 4,
    "reverse": 16,
    "denoise": 8,
    "interpolate": 5,
    "invert": 8,
    "reconstruct": 16,
    "manifold": 400,
}
"""Every task, and the images that it takes where nothing else is asked for."""


def sample(cfg: DictConfig) -> None:
    """Draw samples, or the picture that `task` names. Of several processes all draw samples, and the first one pictures.

    Raises:
        UserError: For anything that the user can fix, before drawing starts.
    """
    with checked(lambda: _check(cfg)):
        from trilemma.checkpoints.device import settle_device
        from trilemma.distributed.ranks import run_on_ranks

        if cfg.task == "samples":
            from trilemma.cli.samples import draw_samples
        else:
            from trilemma.cli.pictures import draw_picture
    settle_device(cfg)
    if cfg.task == "samples":
        run_on_ranks(lambda ranks: draw_samples(cfg, ranks), cfg.device)
    else:
        run_on_ranks(lambda ranks: ranks.first(lambda: draw_picture(cfg)), cfg.device)


def _check(cfg: DictConfig) -> None:
    check_config(cfg, schema.SAMPLE)
    if cfg.task not in NUM_IMAGES:
        near = get_close_matches(cfg.task, NUM_IMAGES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown task={cfg.task}: {hint}choose one of {', '.join(NUM_IMAGES)}")
    if cfg.num_images is None:
        cfg.num_images = NUM_IMAGES[cfg.task]
    if cfg.num_images < 1:
        raise UserError(f"num_images={cfg.num_images} must be at least 1")
    check_batch_size(cfg)
    if cfg.task == "denoise":
        strengths(cfg)
    cfg.ckpt = checkpoint_in(cfg.ckpt)
    check_archive(cfg.ckpt)


def check_batch_size(cfg: DictConfig) -> None:
    """See that a batch size, where one is given, is positive.

    Raises:
        UserError: If it is not.
    """
    if cfg.batch_size is not None and cfg.batch_size < 1:
        raise UserError(f"batch_size={cfg.batch_size} must be at least 1")


def strengths(cfg: DictConfig) -> list[float]:
    """The strengths of `task=denoise`: one number or a list.

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
