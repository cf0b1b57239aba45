import dataclasses

import pytest
import torch

from trilemma.evaluation.metrics.prdc import PRDC
from trilemma.evaluation.oracles import gaussian_metrics as module
from trilemma.evaluation.oracles.gaussian_metrics import GaussianMetrics


@pytest.fixture
def small() -> GaussianMetrics:
    return GaussianMetrics(dim=5, num=60, num_sets=40)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_metrics_hold(seed):
    checks = GaussianMetrics(dim=5, num=100, num_sets=40).run(seed)
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == len({check.name for check in checks}) == 33


def test_a_seed_draws_the_same_numbers(small):
    assert small.run(3) == small.run(3) != small.run(4)


def scaled(metric, factor):
    return lambda *args, **kwargs: metric(*args, **kwargs) * factor


def with_field(metric, **changes):
    """A metric whose result has some of its fields changed."""

    def wrong(*args, **kwargs):
        found = metric(*args, **kwargs)
        return dataclasses.replace(found, **{name: change(getattr(found, name)) for name, change in changes.items()})

    return wrong


def biased_covariance(a, b):
    """The Frechet distance with N in the place of N - 1."""
    tensors = [x if isinstance(x, torch.Tensor) else None for x in (a, b)]
    shrunk = [
        side if x is None else x.mean(0) + (x - x.mean(0)) * (1 - 1 / len(x)) ** 0.5
        for side, x in zip((a, b), tensors, strict=True)
    ]
    return RIGHT["frechet_distance"](*shrunk)


RIGHT = {name: getattr(module, name) for name in ("frechet_distance", "kid", "prdc", "authenticity", "data_copying")}
RIGHT["fd_infinity"] = module.fd_infinity
WRONG = {
    "a covariance over N": ("frechet_distance", biased_covariance),
    "a distance, not its square": ("frechet_distance", lambda a, b: RIGHT["frechet_distance"](a, b) ** 0.5),
    "no extrapolation": (
        "fd_infinity",
        lambda x, real, seed, with_stderr: type("Limit", (), {"value": RIGHT["frechet_distance"](x, real)}),
    ),
    "a kernel distance 5 % off": ("kid", with_field(module.kid, value=lambda v: v * 1.05 + 0.02)),
    "a standard error half as large": ("kid", with_field(module.kid, stderr=lambda v: v / 3)),
    "closed balls": (
        "prdc",
        lambda real, fake, nearest_k: PRDC(
            **vars(RIGHT["prdc"](real, fake, nearest_k=nearest_k)) | {"coverage": 1.0, "density": 1.2}
        ),
    ),
    "another neighbour": ("prdc", lambda real, fake, nearest_k: RIGHT["prdc"](real, fake, nearest_k=nearest_k + 1)),
    "copies that pass": ("authenticity", lambda train, fake: 1 - RIGHT["authenticity"](train, fake)),
    "a sign": ("data_copying", with_field(module.data_copying, score=lambda v: -v)),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_mistake_is_found(monkeypatch, small, mistake):
    name, wrong = WRONG[mistake]
    monkeypatch.setattr(module, name, wrong)
    assert not all(check.passed for check in small.run(0))


@pytest.mark.parametrize("setting", [{"dim": 1}, {"num": 49}, {"num_sets": 9}, {"dim": 30}])
def test_settings_that_say_nothing_are_refused(setting):
    with pytest.raises(ValueError, match="need dim >= 2"):
        GaussianMetrics(**setting)
