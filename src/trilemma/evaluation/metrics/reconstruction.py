"""How well an image comes back: PSNR and SSIM between uint8 images, with data range 1 after division by 255.

Both take uint8, so that a model is judged by the pixels it would write to a file.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The functional path: `torchmetrics.image` imports torch-fidelity where it is installed, and breaks on one without
# torchvision.
from torchmetrics.functional.image import structural_similarity_index_measure

CHUNK = 512  # images at a time; SSIM keeps five filtered copies of each


def squared_errors(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared error of each image on the [0, 1] scale, float64 [N].

    Args:
        images: uint8 [N, C, H, W].
        reconstructions: uint8 [N, C, H, W].
    """
    _check(images, reconstructions)
    pairs = zip(torch.split(images, CHUNK), torch.split(reconstructions, CHUNK), strict=True)
    return torch.cat([((a.double() - b.double()) / 255).square().flatten(1).mean(dim=1) for a, b in pairs])


def psnr(errors: Tensor) -> float:
    """Mean over images of each image's PSNR, in dB; infinite where one image came back exactly.

    Args:
        errors: From `squared_errors`, [N].
    """
    return float((-10 * errors.log10()).mean())


def psnr_pooled(errors: Tensor) -> float:
    """PSNR of the mean squared error over the whole set, in dB: never above `psnr`, by Jensen's inequality.

    Args:
        errors: From `squared_errors`, [N].
    """
    return float(-10 * errors.mean().log10())


def ssim(images: Tensor, reconstructions: Tensor) -> float:
    """Mean structural similarity, Gaussian window of deviation 1.5 (Wang et al. 2004), over the image with a reflected border.

    Wang et al. take whole windows alone, without a border: on small images that is several hundredths more.

    Args:
        images: uint8 [N, C, H, W].
        reconstructions: uint8 [N, C, H, W].
    """
    _check(images, reconstructions)
    total = 0.0
    for a, b in zip(torch.split(images, CHUNK), torch.split(reconstructions, CHUNK), strict=True):
        # The data range is named: left to itself, torchmetrics infers one for each batch.
        values = structural_similarity_index_measure(
            b.double() / 255, a.double() / 255, data_range=1.0, reduction="none"
        )
        assert isinstance(values, Tensor)
        total += float(values.sum())
    return total / len(images)


def _check(images: Tensor, reconstructions: Tensor) -> None:
    if images.dtype != torch.uint8 or reconstructions.dtype != torch.uint8:
        raise TypeError(f"PSNR and SSIM take uint8 images, got {images.dtype} and {reconstructions.dtype}")
    if images.shape != reconstructions.shape or images.ndim != 4 or len(images) == 0:
        raise ValueError(
            f"need images of one shape [N, C, H, W], got {list(images.shape)} and {list(reconstructions.shape)}"
        )
