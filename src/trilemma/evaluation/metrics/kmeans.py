"""Cells of feature space by k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.evaluation.metrics.distances import squared_distances

CHUNK = 8192


def kmeans(features: Tensor, num_cells: int, *, seed: int, num_iterations: int = 20) -> Tensor:
    """Centres of cells: Lloyd's algorithm from seeded k-means++ (Arthur and Vassilvitskii 2007).

    Args:
        features: [N, d].
        num_cells: Number of cells, at most N.
        seed: Of the first centres.
        num_iterations: Steps at most; fewer where no feature changes its cell.

    Returns:
        float64 [num_cells, d].

    Raises:
        ValueError: If there are fewer features than cells.
    """
    if not 0 < num_cells <= len(features):
        raise ValueError(f"the number of cells must lie in 1..{len(features)}, got {num_cells}")
    wide = features.double()
    centres = _plus_plus(wide, num_cells, torch.Generator().manual_seed(seed))
    cells = nearest_centre(wide, centres)
    for _ in range(num_iterations):
        member = torch.nn.functional.one_hot(cells, num_cells).double()
        counts = member.sum(dim=0)
        # An empty cell stays where it is.
        centres = torch.where(counts[:, None] > 0, member.mT @ wide / counts.clamp_min(1)[:, None], centres)
        previous, cells = cells, nearest_centre(wide, centres)
        if torch.equal(cells, previous):
            break
    return centres


def nearest_centre(features: Tensor, centres: Tensor) -> Tensor:
    """Cell of each feature, int64 [N], from features [N, d] and centres [K, d]."""
    middle = centres.mean(dim=0)
    blocks = squared_distances(features.double() - middle, centres - middle, num_rows=CHUNK)
    return torch.cat([squared.argmin(dim=1) for _, squared in blocks])


def _plus_plus(wide: Tensor, num_cells: int, generator: torch.Generator) -> Tensor:
    """Each centre is drawn from the features, by squared distance to the centres so far."""
    closest = wide.new_ones(len(wide))
    chosen: list[Tensor] = []
    for _ in range(num_cells):
        # Inverse CDF: torch.multinomial takes 2^24 categories at most. Where all distances are zero, any will do.
        total = closest.cumsum(dim=0)
        u = torch.rand((), generator=generator, dtype=torch.float64).to(total) * total[-1]
        pick = int(torch.searchsorted(total, u, right=True).clamp_max(len(wide) - 1))
        squared = (wide - wide[pick]).square().sum(dim=1)
        closest = torch.minimum(closest, squared) if chosen else squared
        chosen.append(wide[pick])
    return torch.stack(chosen)
