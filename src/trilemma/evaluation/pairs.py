"""The samples that come nearest to training images, side by side with them."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from trilemma.evaluation.features.extractor import Images
from trilemma.evaluation.metrics.nearest import Neighbours, nearest
from trilemma.figures.images import make_grid

NUM_PAIRS = 16


def closest_pairs(
    samples: Tensor, train: Images, neighbours: Neighbours, closeness: Tensor, *, num_pairs: int = NUM_PAIRS
) -> Image.Image:
    """The closest samples, above the training images nearest by features and nearest by pixels.

    Copies show as columns of three equal images. That the two kinds of neighbour differ is no sign of anything.

    Args:
        samples: uint8 [N, C, H, W].
        train: uint8 [M, C, H, W].
        neighbours: Of each sample in the training set, by features.
        closeness: [N]; the samples with the least are shown, the closest first.
        num_pairs: Number of columns.
    """
    chosen = closeness.argsort(stable=True)[:num_pairs]
    shown = samples[chosen]
    by_features = train[:][neighbours.indices[chosen, 0]]
    by_pixels = train[:][nearest(shown.flatten(1), train[:].flatten(1)).indices[:, 0]]
    rows = torch.cat([shown, by_features, by_pixels])
    return make_grid(rows, len(shown), row_labels=["sample", "nearest by features", "nearest by pixels"])
