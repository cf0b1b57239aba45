import pytest
import torch

from exact_family import MEANS, STD, exact_family
from trilemma.figures.interpolation import images_from, interpolate, latents_of
from trilemma.processes.gaussian.schedules import EDM, CosineBeta, LinearPath
from trilemma.samplers.gaussian.ancestral import GaussianAncestral

FIRST, LAST = (
    torch.tensor(MEANS).view(3, 1, 1, 1) + STD * part for part in torch.linspace(-2, 2, 32).view(2, 1, 1, 4, 4)
)
SCHEDULES = pytest.mark.parametrize(
    "schedule", [CosineBeta(1000), EDM(), LinearPath()], ids=["chain", "edm", "straight"]
)


@SCHEDULES
def test_the_latent_of_a_gaussian(schedule):
    """DDIM moves x0 = mean + STD u to (nearly) alpha mean + sigma u at t = 1, and comes back to it."""
    model = exact_family(labels=True, schedule=schedule)
    latents = latents_of(model, FIRST, [0, 1, 2], num_steps=1000)
    unit = (FIRST - torch.tensor(MEANS).view(3, 1, 1, 1)) / STD
    alpha, sigma = float(schedule.alpha(1.0)), float(schedule.sigma(1.0))
    mean = alpha * torch.tensor(MEANS).view(3, 1, 1, 1)
    assert latents.dtype == torch.float64
    assert (latents - mean - sigma * unit).abs().max() < 0.05 * sigma
    back = images_from(model, latents, [0, 1, 2], num_steps=1000)
    assert (back - FIRST).abs().max() < 0.01


def test_the_error_of_the_way_back_falls_with_the_steps():
    model = exact_family(labels=True)
    errors = []
    for num_steps in (20, 40, 80):
        latents = latents_of(model, FIRST, [0, 1, 2], num_steps=num_steps)
        errors.append(float((images_from(model, latents, [0, 1, 2], num_steps=num_steps) - FIRST).abs().max()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2] > 0


@SCHEDULES
def test_ends_are_the_images_and_the_middle_lies_between(schedule):
    model = exact_family(labels=True, schedule=schedule, sampler=GaussianAncestral(7))
    found = interpolate(model, FIRST, LAST, [0.0, 0.5, 1.0], [0, 1, 2], num_steps=300)
    assert found.shape == (3, 3, 1, 4, 4)
    torch.testing.assert_close(found[:, 0], FIRST, rtol=0, atol=0.03)
    torch.testing.assert_close(found[:, 2], LAST, rtol=0, atol=0.03)
    middle = found[:, 1].flatten(1).mean(1)
    assert middle.tolist() == pytest.approx(MEANS, abs=0.1)
