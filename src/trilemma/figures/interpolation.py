"""DDIM inversion of images, reconstruction from their noise, and interpolation between the noises of two images.

Shapes: images [B, C, H, W] in [-1, 1], latents [B, c, h, w] at t = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trilemma.figures.trajectory import codes_of, images_of, noise_of
from trilemma.models.diffusion import ShowsTrajectory
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.inversion import invert, slerp
from trilemma.samplers.guidance import Guidance


def latents_of(
    model: ShowsTrajectory, images: Tensor, raw: Any = None, *, num_steps: int, guidance: Guidance | None = None
) -> Tensor:
    """Invert images by DDIM, from data to noise.

    Args:
        model: The family, on a Gaussian process.
        images: [B, C, H, W].
        raw: Labels or strings, one each; None for the null condition.
        num_steps: Network calls.
        guidance: None for no guidance, under which the way back is best.

    Returns:
        Latents float64 [B, c, h, w], from which `images_from` comes back to the images, up to O(1 / num_steps).
    """
    return invert(
        model.denoise,
        model.process,
        codes_of(model, images),
        num_steps=num_steps,
        condition=model.condition(raw, num=len(images)),
        guidance=guidance or Guidance(),
        noise=noise_of(model, len(images), 0),
    )


@torch.no_grad()
def images_from(
    model: ShowsTrajectory, latents: Tensor, raw: Any = None, *, num_steps: int, guidance: Guidance | None = None
) -> Tensor:
    """Run DDIM from latents to images; the other arguments as in `latents_of`."""
    codes = model.sample_codes(
        noise_of(model, len(latents), 0),
        len(latents),
        raw,
        sampler=DDIM(num_steps, clip=False),  # clipped steps cannot be inverted
        guidance=guidance or Guidance(),
        x_start=latents,
    )
    return images_of(model, codes)


def interpolate(
    model: ShowsTrajectory,
    first: Tensor,
    last: Tensor,
    weights: Sequence[float],
    raw: Any = None,
    *,
    num_steps: int,
    guidance: Guidance | None = None,
) -> Tensor:
    """Interpolate between the images of two sets, along the great circle of their latents (Song et al. 2021, figure 6).

    Args:
        model: The family, on a Gaussian process.
        first: [B, C, H, W].
        last: Likewise.
        weights: T of them; 0 gives the first image back, 1 the last.
        raw: Labels or strings of the pairs, one each; None for the null condition.
        num_steps: As in `latents_of`.
        guidance: As in `latents_of`.

    Returns:
        Images [B, T, C, H, W].
    """
    a, b = (latents_of(model, part, raw, num_steps=num_steps, guidance=guidance) for part in (first, last))
    between = [
        images_from(model, slerp(a, b, weight), raw, num_steps=num_steps, guidance=guidance) for weight in weights
    ]
    return torch.stack(between, dim=1)
