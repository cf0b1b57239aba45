import pytest
import torch

from trilemma.evaluation.metrics.kmeans import kmeans, nearest_centre


def blobs(num_each: int, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    middles = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [80.0, 80.0]], dtype=torch.float64)
    noise = torch.randn(4 * num_each, 2, generator=generator, dtype=torch.float64)
    return middles.repeat_interleave(num_each, dim=0) + noise, torch.arange(4).repeat_interleave(num_each)


def test_finds_separate_blobs_and_their_means():
    points, blob = blobs(30, seed=0)
    centres = kmeans(points, 4, seed=0)
    cells = nearest_centre(points, centres)
    assert len(set(zip(cells.tolist(), blob.tolist(), strict=True))) == 4
    for cell in range(4):
        assert torch.allclose(centres[cell], points[cells == cell].mean(dim=0), rtol=0, atol=1e-12)


def test_a_fixed_point_of_lloyd_lowers_the_inertia():
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inertia = [
        float(torch.cdist(points, kmeans(points, 6, seed=2, num_iterations=i)).min(dim=1).values.square().sum())
        for i in (0, 1, 3, 100)
    ]
    assert inertia == sorted(inertia, reverse=True)
    assert inertia[-1] < inertia[0]
    centres = kmeans(points, 6, seed=2, num_iterations=100)
    cells = nearest_centre(points, centres)
    means = torch.stack([points[cells == cell].mean(dim=0) for cell in range(6)])
    assert torch.allclose(means, centres, rtol=0, atol=1e-12)


def test_the_nearest_centre_is_nearest():
    points, centres = blobs(10, seed=3)[0], torch.rand(7, 2, dtype=torch.float64) * 80
    assert torch.equal(nearest_centre(points, centres), torch.cdist(points, centres).argmin(dim=1))


def test_equal_points_leave_cells_empty_and_numbers_finite():
    centres = kmeans(torch.ones(9, 2), 3, seed=0)
    assert torch.equal(centres, torch.ones(3, 2, dtype=torch.float64))


def test_seeded():
    points = blobs(20, seed=4)[0]
    assert torch.equal(kmeans(points, 9, seed=5), kmeans(points, 9, seed=5))
    assert not torch.equal(kmeans(points, 9, seed=5), kmeans(points, 9, seed=6))


def test_more_cells_than_points_are_refused():
    with pytest.raises(ValueError, match=r"1\.\.3, got 4"):
        kmeans(torch.rand(3, 2), 4, seed=0)
