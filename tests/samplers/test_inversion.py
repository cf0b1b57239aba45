import math

import pytest
import torch
from exact import MEAN, STD

from trilemma.conditions.base import Condition
from trilemma.errors import UserError
from trilemma.evaluation.oracles.exact import GaussianDenoiser, MixtureDenoiser
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, CosineBeta, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.inversion import invert, slerp
from trilemma.samplers.guidance import Guidance

PROCESSES = [
    (GaussianProcess(LinearBeta()), "trailing"),
    (GaussianProcess(CosineBeta()), "linspace"),
    (GaussianProcess(LinearPath()), "trailing"),
    (GaussianProcess(EDM()), "karras"),
    (GaussianProcess(LinearBeta(zero_terminal_snr=True)), "trailing"),
]
IDS = ["linear", "cosine", "flow", "edm", "zero terminal"]


def mixture(process):
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.2]]).view(2, 2, 1, 1)
    return MixtureDenoiser(process, means, torch.tensor([0.4, 0.3]), torch.tensor([0.3, 0.7]))


def round_trip(process, grid, num_steps):
    x0 = torch.randn(20, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.7
    options = {"condition": Condition(20), "guidance": Guidance(), "noise": Noise(0, torch.arange(20))}
    latent = invert(mixture(process), process, x0, num_steps=num_steps, grid=grid, **options)
    again = DDIM(num_steps, grid=grid)(mixture(process), process, tuple(x0.shape), x_start=latent, **options)
    return float((again - x0).abs().mean())


@pytest.mark.parametrize(("process", "grid"), PROCESSES, ids=IDS)
def test_sampling_from_the_inverse_comes_back_the_closer_the_more_steps(process, grid):
    errors = [round_trip(process, grid, S) for S in (10, 40, 160)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05


def test_the_latent_of_a_gaussian_is_where_the_exact_flow_leads():
    """The flow of a Gaussian keeps (xt - alpha m) / deviation(t)."""
    process = GaussianProcess(LinearPath())
    x0 = torch.linspace(-1, 1, 5, dtype=torch.float64).view(5, 1, 1, 1)
    latent = invert(
        GaussianDenoiser(process, MEAN, STD),
        process,
        x0,
        num_steps=4000,
        condition=Condition(5),
        guidance=Guidance(),
        noise=Noise(0, torch.arange(5)),
    )
    torch.testing.assert_close(latent, (x0 - MEAN) / STD, rtol=1e-3, atol=1e-3)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="continuous"):
        round_trip(GaussianProcess(LinearPath()), "uniform", 10)


def test_slerp_walks_the_circle():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(4, 2, 5, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    unit = [x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b)]
    halves = slerp(slerp(*unit, 0.5), unit[1], 0.5)
    torch.testing.assert_close(halves, slerp(*unit, 0.75))
    torch.testing.assert_close(slerp(*unit, 0.3).flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)  # one direction: the line
    right = slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1 / 3)
    torch.testing.assert_close(right, torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))
