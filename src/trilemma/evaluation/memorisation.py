"""Does a set of images repeat the training set? Authenticity and C_T from one search for nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.evaluation.metrics.authenticity import Spacing, authentic
from trilemma.evaluation.metrics.ct import Placed, c_t
from trilemma.evaluation.metrics.kmeans import kmeans, nearest_centre
from trilemma.evaluation.metrics.nearest import Neighbours, nearest

IMAGES_A_CELL, MAX_CELLS = 100, 50
_CELLS_FROM = 10_000  # training images; more move the centres by nothing that matters, at six times the cost


class Memorisation:
    """Sets of features against a training set and held-out images.

    C_T has a cell for each 100 held-out images, 50 at most.

    Args:
        train: Features [M, d] of the whole training set.
        held_out: Features [n, d], n >= 1, of images outside it.
        seed: Of the cells.
    """

    def __init__(self, train: Tensor, held_out: Tensor, *, seed: int) -> None:
        self.train, self.spacing = train, Spacing(train)
        num_cells = min(MAX_CELLS, max(1, len(held_out) // IMAGES_A_CELL))
        some = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:_CELLS_FROM]
        self.centres = kmeans(train[some], num_cells, seed=seed)
        self.held_out = Placed(nearest(held_out, train).distances[:, 0], nearest_centre(held_out, self.centres))

    def neighbours(self, features: Tensor) -> Neighbours:
        """Nearest training images of features [N, d]."""
        return nearest(features, self.train)

    def closeness(self, neighbours: Neighbours) -> Tensor:
        """How near each sample lies to a training image, in that image's distance to its own neighbour: float64 [N].

        0 is a copy, and a sample above 1 is authentic. A plain distance would find the samples of the densest class instead.
        """
        distances, points = neighbours.distances[:, 0], neighbours.indices[:, 0]
        ratio = torch.zeros_like(distances)
        apart = distances > 0
        ratio[apart] = distances[apart] / self.spacing.of(points[apart])
        return ratio

    def scores(self, features: Tensor, neighbours: Neighbours, fair: Tensor) -> dict[str, float]:
        """`authenticity` of all features, `ct` of as many as there are held-out images, and `ct_judged`.

        Args:
            features: [N, d].
            neighbours: Theirs, as `neighbours` finds them.
            fair: Positions in a fair order, int64 [>= 1]: C_T takes the first n.
        """
        chosen = fair[: len(self.held_out.cells)]
        generated = Placed(neighbours.distances[chosen, 0], nearest_centre(features[chosen], self.centres))
        copying = c_t(self.held_out, generated)
        return {
            "authenticity": float(authentic(self.spacing, neighbours).double().mean()),
            "ct": copying.score,
            "ct_judged": copying.judged,
        }
