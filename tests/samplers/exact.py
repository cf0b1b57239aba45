"""What a sampler does to a Gaussian, measured without sampling."""

import torch

from trilemma.conditions.base import Condition
from trilemma.evaluation.oracles.exact import GaussianDenoiser
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.guidance import Guidance

MEAN, STD = 0.3, 0.5


class Impulses(NoiseSource):
    """Draw k is one for image k + 1 and zero for all others."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.num_draws = 0

    def uniform(self, shape, dtype=torch.float32):
        raise AssertionError("a Gaussian sampler draws normal numbers only")

    def normal(self, shape, dtype=torch.float32):
        drawn = torch.zeros(shape, dtype=dtype)
        self.num_draws += 1
        drawn[self.num_draws] = 1.0
        return drawn


def distribution(process, sampler, *, mean=MEAN, std=STD, denoiser=None):
    """Mean and standard deviation of what the sampler makes of its own prior, exact.

    With the exact denoiser of a Gaussian every step is affine in the state and in the noise it draws, so x0 = a + sum of
    g_k z_k with independent standard normal z_k. Image 0 has all z at zero and shows a, image k + 1 has z_k at one and shows
    a + g_k.
    """
    noise = Impulses()
    shape = (sampler.num_steps + 2, 1, 1, 1)
    x0 = sampler(
        denoiser or GaussianDenoiser(process, mean, std),
        process,
        shape,
        condition=Condition(shape[0]),
        guidance=Guidance(),
        noise=noise,
    ).flatten()
    assert x0.dtype == torch.float64
    gains = x0[1 : noise.num_draws + 1] - x0[0]
    return float(x0[0]), float(gains.square().sum().sqrt())
