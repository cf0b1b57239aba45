"""DDIM: the deterministic walk, and all between it and the ancestral one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from trilemma.errors import UserError
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian import GaussianSampler, Look
from trilemma.samplers.grids import Grid


class DDIM(GaussianSampler):
    """xs = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, v = eta^2 beta tilde of the step.

    Source: Song et al. 2021 (denoising diffusion implicit models), equations 12 and 16, for any alpha and sigma. eps is
    what xt holds beside the guided, clipped x0.

    Args:
        num_steps: Network calls.
        eta: 0 adds no noise; 1 is the ancestral walk with variance "small".
        grid: See `Grid`.
        clip: See `GaussianSampler`.

    Raises:
        UserError: If an option is out of its range.
    """

    def __init__(self, num_steps: int, *, eta: float = 0.0, grid: Grid = "trailing", clip: bool = True) -> None:
        super().__init__(num_steps, grid=grid, clip=clip)
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"sampler.eta={eta}: must lie in [0, 1]; 0 adds no noise, 1 is ancestral sampling")
        self.eta = eta

    def walk(self, xt: Tensor, grid: list[float], look: Look) -> Iterator[tuple[Tensor, Prediction]]:
        """See `GaussianSampler`."""
        process = look.process
        for t, s in pairwise(grid):
            x0, prediction = look.moved_mean(xt, t)
            eps = process.eps_from_x0(x0, xt, t)
            _, _, small = process.posterior_coefficients(s, t)
            variance = self.eta**2 * small
            xt = process.alpha(s) * x0 + (process.sigma(s).square() - variance).sqrt() * eps
            if self.eta > 0.0 and s > 0.0:
                xt = xt + variance.sqrt() * look.noise.normal(tuple(xt.shape), dtype=xt.dtype)
            yield xt, prediction
