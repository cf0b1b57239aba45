import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from trilemma.evaluation.metrics import nearest as module
from trilemma.evaluation.metrics.nearest import nearest


def normal(num: int, dim: int = 5, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("blocks", [(1024, 8192), (7, 11), (16, 3)])  # the last has blocks smaller than k
def test_equals_scikit_learn_whatever_the_blocks(monkeypatch, k, blocks):
    monkeypatch.setattr(module, "NUM_QUERIES", blocks[0])
    monkeypatch.setattr(module, "NUM_TRAIN", blocks[1])
    queries, train = normal(30, seed=0, shift=3.0), normal(70, seed=1, shift=3.0)
    distances, indices = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(train).kneighbors(queries)
    found = nearest(queries, train, k=k)
    assert torch.equal(found.indices, torch.from_numpy(indices))
    assert found.distances.numpy() == pytest.approx(distances, rel=1e-9)


def test_a_copy_is_at_distance_zero():
    # Far from the origin and in single precision, where |x|^2 + |y|^2 - 2xy leaves a rest.
    train = normal(50, 64, seed=2, shift=1000.0).float()
    rows = torch.tensor([40, 3, 3])
    found = nearest(train[rows], train, k=2)
    assert torch.equal(found.indices[:, 0], rows)
    assert found.distances[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert (found.distances[:, 1] > 0).all()


def test_a_training_point_does_not_find_itself(monkeypatch):
    monkeypatch.setattr(module, "NUM_TRAIN", 13)
    train = normal(40, seed=3)
    distances = torch.cdist(train, train).fill_diagonal_(torch.inf)
    rows = torch.arange(5, 40)
    found = nearest(train[rows], train, exclude=rows)
    assert torch.equal(found.indices[:, 0], distances[rows].argmin(dim=1))


def test_takes_pixels():
    generator = torch.Generator().manual_seed(4)
    train = torch.randint(0, 256, (20, 12), generator=generator).to(torch.uint8)
    query = train[7:8].clone()
    query[0, 0] ^= 128
    found = nearest(query, train)
    assert (int(found.indices), float(found.distances)) == (7, 128.0)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="queries"):
        nearest(normal(3, 4, seed=5), normal(3, 5, seed=6))
    with pytest.raises(ValueError, match=r"1\.\.2, got 3"):
        nearest(normal(3, seed=5), normal(3, seed=5), k=3, exclude=torch.arange(3))
