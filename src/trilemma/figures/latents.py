"""Pictures of the latents of a model: the manifold of two, where images lie, and the way from one image to another.

Shapes: latents [B, d], images [B, C, H, W] in [-1, 1].
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from trilemma.errors import UserError
from trilemma.figures.style import plotting
from trilemma.models.capabilities import DecodesLatents, EncodesLatents

_DPI = 130
_MAX_COLOURS = 20  # beyond, classes are not told apart


def manifold_latents(num_side: int) -> Tensor:
    """Compute quantiles of the standard normal in two dimensions, z1 rising to the right and z2 upwards, [num_side^2, 2].

    Each latent stands for the same share of the prior (Kingma and Welling 2014, appendix A and figure 4).
    """
    quantiles = torch.special.ndtri((torch.arange(num_side, dtype=torch.float64) + 0.5) / num_side).float()
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return torch.stack([z1, z2], dim=-1).flatten(0, 1)


def manifold(model: DecodesLatents, num_side: int, raw: Any = None) -> Tensor:
    """Decode `manifold_latents`, row by row, [num_side^2, C, H, W].

    Args:
        model: With two latents.
        num_side: Images a side.
        raw: One label or caption for all; None for the null condition.

    Raises:
        UserError: If the model has another number of latents.
    """
    if model.latent_dim() != 2:
        raise UserError(
            f"a manifold is drawn of a model with 2 latents, and this {type(model).__name__} has {model.latent_dim()}: train one, as "
            "experiment=mnist/vae_2d does"
        )
    z = manifold_latents(num_side)
    return model.from_latents(z, None if raw is None else [raw] * len(z))


def interpolate_latents(
    model: EncodesLatents, first: Tensor, last: Tensor, weights: Sequence[float], raw: Any = None
) -> Tensor:
    """Decode points of the straight line between the latents of two images.

    Args:
        model: What encodes and decodes.
        first: [B, C, H, W].
        last: Likewise.
        weights: T of them; 0 is the reconstruction of the first image, 1 that of the last.
        raw: Labels or captions of the pairs, one each; None for the null condition.

    Returns:
        Images [B, T, C, H, W].
    """
    a, b = model.to_latents(first, raw), model.to_latents(last, raw)
    return torch.stack([model.from_latents(torch.lerp(a, b, weight), raw) for weight in weights], dim=1)


def latent_scatter(z: Tensor, labels: Tensor, names: Sequence[str]) -> Image.Image:
    """Draw latents as points in the colour of their class; of more than two the plane of their first two principal components.

    Args:
        z: [N, d], N at least 2, d at least 2.
        labels: int64 [N].
        names: Of the labels.
    """
    points = z.double().cpu()
    axes_names = ["z₁", "z₂"]
    if points.shape[1] > 2:
        centred = points - points.mean(0)
        _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
        share = spread.square() / spread.square().sum()
        points = centred @ directions[:2].T
        axes_names = [f"principal component {i + 1} ({share[i]:.0%} of the variance)" for i in range(2)]
    with plotting():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.subplots()
        found = sorted(set(labels.tolist()))
        for label in found if len(found) <= _MAX_COLOURS else [None]:
            mine = slice(None) if label is None else labels.cpu() == label
            x, y = points[mine].T.tolist()
            name = None if label is None else names[label]
            axes.scatter(x, y, s=7, linewidths=0, alpha=0.75, color=_class_colour(label or 0), label=name)
        if len(found) <= _MAX_COLOURS:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.5)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(axes_names[0])
        axes.set_ylabel(axes_names[1])
        axes.set_title(f"Latent means of {len(points)} images")
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=_DPI, metadata={"Software": None})
    written.seek(0)
    with Image.open(written) as picture:
        return picture.convert("RGB")


def _class_colour(index: int) -> Any:
    """Of matplotlib's ten, which differ more than those of series."""
    from matplotlib import colormaps

    return colormaps["tab20" if index >= 10 else "tab10"](index)
