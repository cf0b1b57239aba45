import pytest
import torch

from trilemma.evaluation.metrics import authenticity as module
from trilemma.evaluation.metrics.authenticity import Spacing, authenticity


def normal(num: int, dim: int = 3, *, seed: int) -> torch.Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_the_full_matrix(train: torch.Tensor, fake: torch.Tensor) -> float:
    among_train = torch.cdist(train, train).fill_diagonal_(torch.inf).min(dim=1).values
    distance, t = torch.cdist(fake, train).min(dim=1)
    return float((among_train[t] < distance).double().mean())


def test_equals_the_full_matrix():
    train, fake = normal(80, seed=0), normal(60, seed=1)
    expected = by_the_full_matrix(train, fake)
    assert 0.2 < expected < 0.8  # a case that says something
    assert authenticity(train, fake) == expected


def test_by_hand():
    train = torch.tensor([[0.0], [1.0], [5.0]])
    # 0.5 and 2.0: t is 0 or 1 away at 0.5 < 1; 1 is at 1.0, a tie with its neighbour 0: neither is authentic.
    # 7.0: t = 5, at 2 < 4, not authentic. -1.5: t = 0 at 1.5 > 1: authentic.
    fake = torch.tensor([[0.5], [2.0], [7.0], [-1.5]])
    assert authenticity(train, fake) == 0.25


def test_copies_are_not_authentic_even_of_repeated_images():
    train = normal(50, seed=2).float() + 100
    train[10] = train[11]
    assert authenticity(train, train[torch.randperm(50, generator=torch.Generator().manual_seed(0))]) == 0.0


def test_near_copies_are_not_authentic_and_outliers_are():
    train = normal(50, seed=3)
    assert authenticity(train, train + 1e-6) == 0.0
    assert authenticity(train, train + 1000) == 1.0


def test_does_not_depend_on_the_number_of_samples():
    train, fake = normal(40, seed=4), normal(30, seed=5)
    assert authenticity(train, torch.cat([fake, fake, fake])) == pytest.approx(authenticity(train, fake), rel=1e-12)


def test_held_out_points_on_a_line_are_authentic_one_time_in_three():
    # On a line two thirds of all points are the nearest neighbour of their nearest neighbour.
    shares = [authenticity(normal(1000, 1, seed=6 + s), normal(1000, 1, seed=106 + s)) for s in range(4)]
    assert sum(shares) / 4 == pytest.approx(1 / 3, abs=0.03)


def test_spacing_is_found_once_and_right(monkeypatch):
    train = normal(40, seed=8)
    expected = torch.cdist(train, train).fill_diagonal_(torch.inf).min(dim=1).values
    spacing = Spacing(train)
    for points in (torch.tensor([3, 7, 3]), torch.tensor([7, 9, 0])):
        torch.testing.assert_close(spacing.of(points), expected[points])
    monkeypatch.setattr(module, "nearest", lambda *args, **kwargs: pytest.fail("searched again"))
    torch.testing.assert_close(spacing.of(torch.tensor([9, 3])), expected[[9, 3]])
