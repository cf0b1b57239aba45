import math

import pytest
import torch

from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.jackknife import jackknife_stderr, share_stderr


@pytest.mark.parametrize("num_groups", [60, 1000])
def test_of_a_mean_it_is_the_standard_error_of_the_mean(num_groups):
    x = torch.randn(60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = jackknife_stderr(lambda some: float(some.mean()), x, num_groups=num_groups)
    assert found == pytest.approx(float(x.std()) / math.sqrt(60), rel=1e-12)


def test_of_a_frechet_distance_it_is_the_scatter_over_draws():
    generator = torch.Generator().manual_seed(0)
    real = Moments.of(torch.randn(20_000, 4, generator=generator, dtype=torch.float64) * 1.5)
    draws = [torch.randn(400, 4, generator=generator, dtype=torch.float64) for _ in range(200)]
    scatter = torch.tensor([frechet_distance(draw, real) for draw in draws]).std()
    errors = [jackknife_stderr(lambda some: frechet_distance(some, real), draw) for draw in draws[:40]]
    assert sum(errors) / 40 == pytest.approx(float(scatter), rel=0.2)


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        jackknife_stderr(lambda some: 0.0, torch.zeros(2, 1))


def test_share():
    assert share_stderr(0.5, 100) == 0.05
    assert share_stderr(1.0, 7) == 0.0
