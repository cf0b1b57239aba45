import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from trilemma.evaluation.metrics import kid as module
from trilemma.evaluation.metrics.kid import Within, kid


def normal(num: int, dim: int = 6, *, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(num, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def by_hand(x: Tensor, y: Tensor) -> float:
    """The definition, pair by pair."""

    def mean(pairs) -> float:
        values = [(float(a @ b) / len(a) + 1) ** 3 for a, b in pairs]
        return sum(values) / len(values)

    return mean(itertools.permutations(x, 2)) + mean(itertools.permutations(y, 2)) - 2 * mean(itertools.product(x, y))


def test_equals_the_definition():
    x, y = normal(7, seed=0), normal(9, seed=1, shift=0.5)
    assert kid(x, y).value == pytest.approx(by_hand(x, y), rel=1e-12)
    assert kid(x, Within.of(y)) == kid(Within.of(x), y) == kid(x, y)


class AsFeatures(nn.Module):
    """Passes features off as images, in the double precision that torchmetrics does not widen to."""

    num_features = 16

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1).double()


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_equals_torchmetrics_on_one_subset_that_is_everything():
    x, y = normal(40, 16, seed=2).float(), normal(40, 16, seed=3, shift=0.3).float()
    metric = KernelInceptionDistance(AsFeatures(), subsets=1, subset_size=40, normalize=True)
    metric.update(x.view(-1, 1, 4, 4), real=True)
    metric.update(y.view(-1, 1, 4, 4), real=False)
    assert kid(x, y).value == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def counts_of(num: int, points: int) -> list[tuple[int, ...]]:
    return [c for c in itertools.product(range(num + 1), repeat=points) if sum(c) == num]


def distribution(num: int, p: list[float], points: Tensor) -> list[tuple[float, Tensor]]:
    """Every sample of `num` draws from a distribution on a few points, up to order, with its probability."""
    found = []
    for counts in counts_of(num, len(p)):
        ways = math.factorial(num) / math.prod(math.factorial(c) for c in counts)
        probability = ways * math.prod(q**c for q, c in zip(p, counts, strict=True))
        found.append((probability, points.repeat_interleave(torch.tensor(counts), dim=0)))
    return found


@pytest.mark.parametrize(
    "q", [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], ids=["equal distributions", "different distributions"]
)
def test_distance_and_variance_are_unbiased_over_every_possible_sample(q):
    points = normal(3, 2, seed=4) * 2
    p = [0.5, 0.3, 0.2]
    kernel = (points @ points.T / 2 + 1) ** 3
    difference = torch.tensor(p, dtype=torch.float64) - torch.tensor(q, dtype=torch.float64)
    truth = float(difference @ kernel @ difference)
    mean = square = variance = 0.0
    for (weight_x, x), (weight_y, y) in itertools.product(distribution(4, p, points), distribution(5, q, points)):
        weight = weight_x * weight_y
        value = kid(x, y).value
        mean += weight * value
        square += weight * value**2
        variance += weight * module._variance(module._sums(x), module._sums(y), module._sums(x, y), floor=-math.inf)
    assert mean == pytest.approx(truth, abs=1e-9)
    assert variance == pytest.approx(square - mean**2, rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_standard_error_is_the_spread_between_independent_sets(shift):
    found = [kid(normal(60, seed=2 * s), normal(90, seed=2 * s + 1, shift=shift)) for s in range(300)]
    spread = torch.tensor([k.value for k in found]).std()
    typical = torch.tensor([k.stderr for k in found]).square().mean().sqrt()
    # The deviation of 300 values is known to 4 %; clamping the variance's terms at zero adds a little where distributions agree.
    assert 0.85 < typical / spread < 1.3


def test_symmetric_and_blind_to_order_and_chunks(monkeypatch):
    x, y = normal(50, seed=5), normal(40, seed=6, shift=0.2)
    whole = kid(x, y)
    assert kid(y, x).value == pytest.approx(whole.value, rel=1e-10)
    assert kid(y, x).stderr == pytest.approx(whole.stderr, rel=1e-10)
    monkeypatch.setattr(module, "MAX_ENTRIES", 7 * 40)
    pieces = kid(x.flip(0), y)
    assert pieces.value == pytest.approx(whole.value, rel=1e-10)
    assert pieces.stderr == pytest.approx(whole.stderr, rel=1e-10)


def test_a_collapsed_set_has_a_finite_error():
    found = kid(normal(1, seed=7).expand(30, -1), normal(30, seed=8))
    assert found.value > 0
    assert 0 < found.stderr < math.inf


def test_refuses_what_has_no_variance():
    with pytest.raises(ValueError, match="N >= 4"):
        kid(normal(3, seed=9), normal(10, seed=10))
    with pytest.raises(ValueError, match="dimensions differ: 3 and 4"):
        kid(normal(10, 3, seed=9), normal(10, 4, seed=10))
