"""DDIM: the deterministic sampler at eta = 0, and the family up to ancestral sampling at eta = 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from trilemma.errors import UserError
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian.base import GaussianSampler, guided_x0, step_pairs
from trilemma.samplers.gaussian.grids import Grid
from trilemma.samplers.guided import GuidedDenoiser


class DDIM(GaussianSampler):
    """xs = alpha_s x0 + sqrt(sigma_s^2 - v) eps + sqrt(v) z, v = eta^2 beta tilde of the step.

    Source: Song et al. 2021 (denoising diffusion implicit models), equations 12 and 16, for any alpha and sigma. eps is
    what xt holds beside the guided, clipped x0.

    Args:
        num_steps: Network calls.
        eta: 0 adds no noise; 1 is ancestral sampling with variance "small".
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

    def trajectory(
        self, xt: Tensor, times: Sequence[float], denoiser: GuidedDenoiser
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """See `DenoisingSampler`."""
        process, (t, s) = denoiser.process, step_pairs(times)
        variance = self.eta**2 * process.posterior_coefficients(s, t)[2]
        kept = (process.sigma(s).square() - variance).sqrt() / process.sigma(t)
        added = process.alpha(s) - kept * process.alpha(t)
        for time, k, a, std in zip(times, kept.tolist(), added.tolist(), variance.sqrt().tolist(), strict=False):
            x0, prediction = guided_x0(denoiser, xt, time, clip=self.clip)
            xt = k * xt + a * x0  # alpha_s x0 + sqrt(sigma_s^2 - v) eps, eps being (xt - alpha_t x0) / sigma_t
            if std > 0.0:
                xt = xt + std * denoiser.noise.normal(tuple(xt.shape), dtype=xt.dtype)
            yield xt, prediction
