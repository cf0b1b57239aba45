"""What turns a network's output into a distribution."""

import pytest
import torch
from distribution_cases import random

from trilemma.distributions.bernoulli import BernoulliOutput
from trilemma.distributions.categorical import CategoricalOutput
from trilemma.distributions.categorical_levels import CategoricalLevelsOutput
from trilemma.distributions.discretised_gaussian import DiscretisedGaussianOutput
from trilemma.distributions.logistic import DiscretisedLogisticOutput
from trilemma.distributions.logistic_mixture import DiscretisedLogisticMixtureOutput
from trilemma.distributions.normal import NormalOutput
from trilemma.errors import UserError
from trilemma.processes.noise import Noise

OUTPUTS = [
    (BernoulliOutput(), 3),
    (CategoricalOutput(5), 15),
    (CategoricalLevelsOutput(5), 15),
    (NormalOutput(), 6),
    (NormalOutput(-0.5), 3),
    (DiscretisedGaussianOutput(), 6),
    (DiscretisedLogisticOutput(), 6),
    (DiscretisedLogisticMixtureOutput(), 100),
]


@pytest.mark.parametrize(("output", "num"), OUTPUTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_of_as_many_channels_is_a_distribution_of_images(output, num, channels, dtype):
    assert output.num_parameters(3) == num
    parameters = random(2, output.num_parameters(channels), 4, 5, dtype=dtype).to(memory_format=torch.channels_last)
    parameters.requires_grad_()
    distribution = output(parameters)
    x = distribution.sample(Noise(0, torch.arange(2)))
    assert x.shape == distribution.mean.shape == (2, channels, 4, 5)
    log_prob = distribution.log_prob(x.detach())
    assert log_prob.shape == x.shape
    assert log_prob.dtype == torch.float32
    (grad,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert grad.isfinite().all()
    # Every parameter says something of some pixel, and a pixel's parameters of that pixel alone.
    (of_one,) = torch.autograd.grad(output(parameters).log_prob(x.detach())[0, :, 1, 2].sum(), parameters)
    assert (of_one[0, :, 1, 2] != 0).float().mean() > 0.5
    of_one[0, :, 1, 2] = 0
    assert (of_one == 0).all()


def test_scales_are_kept_from_below():
    low = torch.full((1, 2, 1, 1), -50.0)
    assert float(NormalOutput()(low).log_std) == -7
    assert float(DiscretisedGaussianOutput(min_log_std=-3)(low).log_scale) == -3
    assert float(DiscretisedLogisticOutput()(low).log_scale) == -7
    assert (DiscretisedLogisticMixtureOutput(2)(torch.full((1, 6, 1, 1), -50.0)).log_scales == -7).all()


def test_parts_are_where_they_are_said_to_be():
    parameters = torch.arange(2 * 10.0).view(1, 20, 1, 1)
    mixture = DiscretisedLogisticMixtureOutput(2)(parameters)
    assert mixture.logits.flatten().tolist() == [0, 1]
    assert mixture.means[0, :, :, 0, 0].tolist() == [[2, 4, 6], [3, 5, 7]]
    assert mixture.log_scales[0, :, :, 0, 0].tolist() == [[8, 10, 12], [9, 11, 13]]
    torch.testing.assert_close(mixture.coefficients[0, :, :, 0, 0], torch.tensor([[14.0, 16, 18], [15, 17, 19]]).tanh())
    logits = CategoricalOutput(5)(torch.arange(10.0).view(1, 10, 1, 1)).logits
    assert logits[0, :, 0, 0].tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    normal = NormalOutput()(torch.arange(4.0).view(1, 4, 1, 1))
    assert normal.mean.flatten().tolist() == [0, 1]
    assert normal.log_std.flatten().tolist() == [2, 3]


def test_wrong_numbers_are_refused():
    for make, named in (
        (lambda: CategoricalOutput(1), "num_classes=1"),
        (lambda: CategoricalLevelsOutput(1), "num_levels=1"),
        (lambda: DiscretisedLogisticOutput(1), "num_levels=1"),
        (lambda: DiscretisedGaussianOutput(0), "num_levels=0"),
        (lambda: DiscretisedLogisticMixtureOutput(0), "num_components=0"),
    ):
        with pytest.raises(UserError, match=named):
            make()
    for output in (NormalOutput(), CategoricalOutput(2), DiscretisedLogisticMixtureOutput(2)):
        with pytest.raises(ValueError, match="output channels"):
            output(torch.zeros(1, 7, 1, 1))
