import numpy as np
import torch

from trilemma.evaluation.metrics.nearest import nearest
from trilemma.evaluation.pairs import closest_pairs
from trilemma.figures.images import make_grid


def test_copies_come_first_above_what_they_copy():
    generator = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (50, 1, 6, 6), dtype=torch.uint8, generator=generator)
    samples = torch.randint(0, 256, (9, 1, 6, 6), dtype=torch.uint8, generator=generator)
    samples[5], samples[2] = train[31], train[8]
    features = nearest(samples.flatten(1).float(), train.flatten(1).float())
    picture = closest_pairs(samples, train, features, features.distances[:, 0], num_pairs=2)
    chosen = torch.cat([samples[[2, 5]], train[[8, 31]], train[[8, 31]]])
    expected = make_grid(chosen, 2, row_labels=["sample", "nearest by features", "nearest by pixels"])
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_the_two_kinds_of_neighbour_may_differ():
    train = torch.stack([torch.full((1, 2, 2), value, dtype=torch.uint8) for value in (0, 100, 200)])
    sample = torch.full((1, 1, 2, 2), 190, dtype=torch.uint8)
    by_features = nearest(torch.zeros(1, 1), torch.tensor([[0.0], [5.0], [9.0]]))
    picture = closest_pairs(sample, train, by_features, torch.ones(1), num_pairs=4)
    expected = make_grid(
        torch.cat([sample, train[:1], train[2:]]),
        1,
        row_labels=["sample", "nearest by features", "nearest by pixels"],
    )
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
