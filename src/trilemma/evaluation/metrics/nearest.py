"""Nearest training neighbours of samples: what a generator may have copied."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.evaluation.metrics.distances import squared_distances

# Queries and training points whose distances exist at a time: 8 MB in float64, which a cache holds.
NUM_QUERIES, NUM_TRAIN = 512, 2048


class Neighbours(NamedTuple):
    """Neighbours of N queries, nearest first: indices int64 [N, k] into the training set and distances float64 [N, k]."""

    indices: Tensor
    distances: Tensor


def nearest(queries: Tensor, train: Tensor, *, k: int = 1, exclude: Tensor | None = None) -> Neighbours:
    """Exact k nearest training points, by Euclidean distance.

    The training set is widened to float64 a block at a time, so uint8 pixels [M, C * H * W] pass as they are. The
    distances returned are taken by difference: that of a copy is exactly zero.

    Args:
        queries: Features or flattened images [N, d], N >= 1.
        train: The same of the training set, [M, d].
        k: Number of neighbours.
        exclude: For each query one position in `train` that it must not find, int64 [N]: its own, for queries that
            are training points.

    Raises:
        ValueError: If shapes do not fit, or there are fewer than k points to find.
    """
    if queries.ndim != 2 or train.ndim != 2 or queries.shape[1] != train.shape[1] or len(queries) == 0:
        raise ValueError(
            f"need queries [N, d] and a training set [M, d], got {list(queries.shape)}, {list(train.shape)}"
        )
    num_found = len(train) - (exclude is not None)
    if not 0 < k <= num_found:
        raise ValueError(f"k must lie in 1..{num_found}, got {k}")
    blocks = [train[start : start + NUM_TRAIN].double().sum(dim=0) for start in range(0, len(train), NUM_TRAIN)]
    centre = torch.stack(blocks).sum(dim=0) / len(train)
    centred = queries.double() - centre
    squares = centred.new_full((len(queries), k), torch.inf)
    indices = torch.zeros(len(queries), k, dtype=torch.int64, device=queries.device)
    for start in range(0, len(train), NUM_TRAIN):
        block = train[start : start + NUM_TRAIN].double() - centre
        for rows, squared in squared_distances(centred, block, num_rows=NUM_QUERIES):
            if exclude is not None:
                own = exclude[rows] - start
                here = ((own >= 0) & (own < len(block))).nonzero().flatten()
                squared[here, own[here]] = torch.inf
            found, where = _smallest(squared, min(k, len(block)))
            squares[rows], order = _smallest(torch.cat([squares[rows], found], dim=1), k)
            indices[rows] = torch.cat([indices[rows], where + start], dim=1).gather(1, order)
    distances = torch.cat(
        [
            (q.double()[:, None] - train[i].double()).square().sum(dim=2).sqrt()
            for q, i in zip(torch.split(queries, NUM_QUERIES), torch.split(indices, NUM_QUERIES), strict=True)
        ]
    )
    distances, order = distances.sort(dim=1, stable=True)
    return Neighbours(indices.gather(1, order), distances)


def _smallest(squared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and indices of the k smallest in each row, [N, k]; of one, by the faster search."""
    found = squared.min(dim=1, keepdim=True) if k == 1 else squared.topk(k, largest=False)
    return found.values, found.indices
