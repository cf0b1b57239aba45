"""Weights of the bound of a categorical process, against their definitions; those of Gaussian models are tests/models/test_ddpm.py's."""

import pytest
import torch

from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Cosine, Linear, VQDiffusionPaper
from trilemma.training.loss_weights import KnowsSNR, MinSNR, Simple, SoftMinSNR

PROCESSES = [MaskAndReplace(4, VQDiffusionPaper()), Absorbing(4, Linear()), Uniform(4, Cosine())]
T = torch.linspace(0, 1, 11, dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_the_ratio_of_kept_to_lost_tokens(process):
    alpha_bar = process.schedule.alpha_bar(T[1:-1])
    torch.testing.assert_close(process.log_snr(T[1:-1]).exp(), alpha_bar / (1 - alpha_bar))
    assert process.log_snr(T[0]) == torch.inf
    assert process.log_snr(0.5).shape == ()
    assert isinstance(process, KnowsSNR)


def test_the_bound_itself_has_no_weights():
    assert Simple().on_bound(torch.zeros(3)) is None


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_weights_relative_to_the_bound(process):
    snr = process.log_snr(T[1:-1]).exp()
    torch.testing.assert_close(MinSNR(2.0).on_bound(snr.log()), torch.minimum(torch.ones_like(snr), 2.0 / snr))
    torch.testing.assert_close(SoftMinSNR(2.0).on_bound(snr.log()), 2.0 / (snr + 2.0))


@pytest.mark.parametrize("weight", [MinSNR(3.0), SoftMinSNR(3.0)], ids=lambda weight: type(weight).__name__)
def test_weights_at_both_ends(weight):
    ends = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    assert weight.on_bound(ends).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("weight", [MinSNR(3.0), SoftMinSNR(3.0)], ids=lambda weight: type(weight).__name__)
def test_weights_on_the_bound_are_those_on_x0_over_the_ratio(weight):
    snr = torch.logspace(-3, 3, 13, dtype=torch.float64)
    torch.testing.assert_close(weight.on_bound(snr.log()) * snr, weight.of_x0(snr))
