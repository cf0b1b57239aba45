"""DDIM inversion: from data to the noise that DDIM turns into them; and interpolation between two noises."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import Denoiser
from trilemma.samplers.gaussian.base import guided_x0
from trilemma.samplers.gaussian.grids import Grid, times
from trilemma.samplers.guidance import Guidance
from trilemma.samplers.guided import GuidedDenoiser


@torch.no_grad()
def invert(
    denoiser: Denoiser,
    process: GaussianProcess,
    x0: Tensor,
    *,
    num_steps: int,
    condition: Condition,
    guidance: Guidance,
    noise: NoiseSource,
    grid: Grid = "trailing",
    clip: bool = False,
) -> Tensor:
    """Run DDIM without noise from data to noise: DDIM on the same grid maps the latent back to x0, up to O(1 / num_steps).

    A step from s up to t uses what the network says at its lower end (Euler's method on the probability flow; Song et al.
    2021, section 4.3). At s = 0, where there is no noise to predict, it is asked at the first time of the grid, about x0
    without noise.

    Args:
        denoiser: The network.
        process: Its process.
        x0: Data [B, ...].
        num_steps: Network calls.
        condition: What x0 is conditioned on.
        guidance: As in sampling; strong guidance inverts badly.
        noise: Source of randomness for a denoiser that draws.
        grid: As in sampling.
        clip: Clip the predicted x0 to the data's bound. A clipped step cannot be inverted.

    Returns:
        The state at the highest time of the grid, float64 [B, ...]; give it to DDIM as `x_start`.

    Raises:
        UserError: If the grid does not fit the process.
    """
    guided = GuidedDenoiser(denoiser, process, condition, guidance, noise)
    rising = times(process.schedule, num_steps, grid)[::-1]
    xs = x0.double()
    for s, t in pairwise(rising):
        asked = s if s > 0.0 else t
        at = xs if s > 0.0 else process.alpha(t) * xs
        mean, _ = guided_x0(guided, at, asked, clip=clip)
        eps = process.eps_from_x0(mean, at, asked)
        xs = process.alpha(t) * (mean if s > 0.0 else xs) + process.sigma(t) * eps
    return xs


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Interpolate along the great circle from a to b, image by image, so that the norm stays that of noise.

    Source: Song et al. 2021 (denoising diffusion implicit models), equation 67; Shoemake 1985.

    Args:
        a: Latents [B, ...].
        b: Likewise.
        weight: 0 gives a, 1 gives b.

    Returns:
        Latents shaped like a.
    """
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1.0, 1.0)
    angle = cosine.acos()[:, None]
    sine = angle.sin()
    # Between parallel vectors slerp is linear interpolation.
    even = sine < 1e-6
    safe = torch.where(even, torch.ones_like(sine), sine)
    share_a = torch.where(even, torch.full_like(sine, 1.0 - weight), ((1.0 - weight) * angle).sin() / safe)
    share_b = torch.where(even, torch.full_like(sine, weight), (weight * angle).sin() / safe)
    return (share_a * flat_a + share_b * flat_b).view(a.shape)
