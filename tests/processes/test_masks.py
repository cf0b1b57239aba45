"""Which processes only ever mask, and what they say of it."""

import copy
import math

import pytest
import torch
from ring import Ring
from torch import nn
from zoo import PROCESSES, K

from trilemma.capabilities import supports
from trilemma.processes.categorical.base import Masks
from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import (
    Cosine,
    Linear,
    LogLinear,
    Schedule,
    VQDiffusionPaper,
    VQDiffusionReleased,
    as_float64,
)
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import CosineBeta
from trilemma.processes.noise import Noise, TorchNoise

MASKING = [Absorbing(K, Linear()), Absorbing(K, LogLinear()), MaskAndReplace(K, Cosine(1.0))]
REPLACING = [
    MaskAndReplace(K, VQDiffusionPaper()),
    MaskAndReplace(K, VQDiffusionReleased()),
    MaskAndReplace(K, LogLinear(0.0)),
    Uniform(K, Cosine()),
    Ring(K),
]


@pytest.mark.parametrize("process", MASKING)
def test_a_schedule_that_never_replaces_masks(process):
    assert supports(process, Masks)
    xt, where = torch.arange(K)[None], torch.arange(K)[None] % 2 == 0
    masked = process.mask(xt, where)
    assert torch.equal(process.is_known(masked), ~where)
    assert torch.equal(masked[~where], xt[~where])
    for t in (0.3, torch.tensor(0.3), torch.tensor([0.0, 0.3, 1.0])):
        probability = process.mask_probability(t)
        assert probability.dtype == torch.float64
        assert probability.shape == as_float64(t).shape
    drawn = process.sample(torch.zeros(500, 100, dtype=torch.int64), 0.3, Noise(0, torch.arange(500)))
    share = (~process.is_known(drawn)).double().mean()
    assert float(share) == pytest.approx(float(process.mask_probability(0.3)), abs=4 * 0.5 / 50_000**0.5)


@pytest.mark.parametrize("process", REPLACING)
def test_a_process_that_replaces_does_not(process):
    assert not supports(process, Masks)


@pytest.mark.parametrize("process", [*PROCESSES, pytest.param(GaussianProcess(CosineBeta()), id="gaussian")])
def test_a_process_is_a_module_that_a_checkpoint_does_not_see(process):
    assert isinstance(process, nn.Module)
    assert not process.state_dict()
    copied = copy.deepcopy(process).to("meta").to(torch.float16)
    assert getattr(copied, "unsupported", None) == getattr(process, "unsupported", None)
    assert copied.prior((2, 3), Noise(0, torch.arange(2))).shape == (2, 3)


class Rounded(Schedule):
    """cos^2 and sin^2: nothing is replaced, but the three do not sum to 1 in floating point."""

    def alpha_bar(self, t):
        return torch.cos(0.5 * math.pi * as_float64(t)).square()

    def gamma_bar(self, t):
        return torch.sin(0.5 * math.pi * as_float64(t)).square()


@pytest.mark.parametrize("kind", [MaskAndReplace, Absorbing])
def test_what_rounding_leaves_is_no_replacement(kind):
    process = kind(5, Rounded())
    assert supports(process, Masks)
    xt = torch.arange(5).repeat(40, 1)
    log_x0 = torch.zeros(40, 5, 5)
    for step in range(100, 0, -1):
        t, s = step / 100, (step - 1) / 100
        for weighting in ("posterior", "joint"):
            assert torch.equal(process.step(log_x0, xt, s, t, weighting, TorchNoise()), xt)
