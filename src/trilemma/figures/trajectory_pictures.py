"""Pictures of a diffusion model's trajectory: strips of images with times above or strengths at the left.

Images are float in [-1, 1] or uint8, [..., C, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from trilemma.figures.images import make_grid


def forward_picture(states: Tensor, times: Sequence[float]) -> Image.Image:
    """Draw the forward process: one row an image, one column a time.

    Args:
        states: [B, T, C, H, W].
        times: T of them.
    """
    return make_grid(states.flatten(0, 1), len(times), column_labels=_times(times))


def reverse_picture(states: Tensor, predicted: Tensor, times: Sequence[float]) -> Image.Image:
    """Draw the reverse process: two rows a sample, the states and below them the predictions of x0.

    Args:
        states: [B, T, C, H, W].
        predicted: Likewise.
        times: T of them.
    """
    rows = torch.stack([states, predicted], dim=1)
    names = ["state", "predicted"] * len(states)
    return make_grid(rows.flatten(0, 2), len(times), row_labels=names, column_labels=_times(times))


def trajectory_frames(states: Tensor) -> list[Image.Image]:
    """Draw a grid of samples at each time, as near to a square as possible.

    Args:
        states: [B, T, C, H, W].

    Returns:
        T pictures of one size.
    """
    num_columns = math.ceil(math.sqrt(len(states)))
    return [make_grid(states[:, i], num_columns) for i in range(states.shape[1])]


def denoise_picture(images: Tensor, denoised: Sequence[Tensor], strengths: Sequence[float]) -> Image.Image:
    """Draw the data, and below them what is denoised from each strength of noise; one column an image.

    Args:
        images: [B, C, H, W].
        denoised: One [B, C, H, W] a strength.
        strengths: Times that were noised up to.
    """
    names = ["data", *(f"{strength:g}" for strength in strengths)]
    return make_grid(torch.cat([images, *denoised]), len(images), row_labels=names)


def interpolation_picture(first: Tensor, between: Tensor, last: Tensor, weights: Sequence[float]) -> Image.Image:
    """Draw one row a pair: an image, the interpolations, and the other image.

    Args:
        first: [B, C, H, W].
        between: [B, T, C, H, W].
        last: [B, C, H, W].
        weights: T of them; 0 is the first image as the model gives it back, 1 the last one.
    """
    rows = torch.cat([first[:, None], between, last[:, None]], dim=1)
    names = ["data", *(f"{weight:.2g}" for weight in weights), "data"]
    return make_grid(rows.flatten(0, 1), len(names), column_labels=names)


def inversion_picture(images: Tensor, inverted: Tensor, back: Tensor) -> Image.Image:
    """Draw the data, their latents, and the reconstructions from those; one column an image, each [B, C, H, W]."""
    return make_grid(torch.cat([images, inverted, back]), len(images), row_labels=["data", "noise", "back"])


def _times(times: Sequence[float]) -> list[str]:
    return [f"t = {t:.2g}" if i == 0 else f"{t:.2g}" for i, t in enumerate(times)]
