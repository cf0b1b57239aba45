"""DPM-Solver++: the probability flow ODE in half the log-SNR, solved exactly for an x0 that changes linearly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor

from trilemma.errors import UserError
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian.base import GaussianSampler, guided_x0, step_pairs
from trilemma.samplers.gaussian.grids import Grid
from trilemma.samplers.guided import GuidedDenoiser


class DPMSolver(GaussianSampler):
    """DPM-Solver++(2M), the multistep solver of second order on predictions of x0.

    xs = (sigma_s / sigma_t) xt + alpha_s (1 - exp(-h)) D with h the increase of lambda = log(alpha / sigma) and D the x0 of
    this step, extrapolated from the last step's x0 to the middle of the step. The first and the last step are of first order, which is
    DDIM: there lambda may start or end infinite.

    Source: Lu et al. 2022 (DPM-Solver++), algorithm 2.

    Args:
        num_steps: Network calls.
        order: 2, or 1 for DDIM without noise.
        grid: See `Grid`.
        clip: See `GaussianSampler`.

    Raises:
        UserError: If an option is out of its range.
    """

    def __init__(self, num_steps: int, *, order: Literal[1, 2] = 2, grid: Grid = "trailing", clip: bool = True) -> None:
        super().__init__(num_steps, grid=grid, clip=clip)
        if order not in (1, 2):
            raise UserError(f"sampler.order={order}: choose 1 or 2")
        self.order = order

    def trajectory(
        self, xt: Tensor, times: Sequence[float], denoiser: GuidedDenoiser
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """See `DenoisingSampler`."""
        process, (t, s) = denoiser.process, step_pairs(times)
        rises = 0.5 * (process.log_snr(s) - process.log_snr(t))
        # sigma_s / sigma_t and alpha_s (1 - exp(-h)), finite even where lambda is infinite.
        kept = process.sigma(s) / process.sigma(t)
        added = process.alpha(s) - kept * process.alpha(t)
        x0_before: Tensor | None = None
        rise_before = math.inf
        for time, rise, k, a in zip(times, rises.tolist(), kept.tolist(), added.tolist(), strict=False):
            x0, prediction = guided_x0(denoiser, xt, time, clip=self.clip)
            ahead = x0
            if self.order == 2 and x0_before is not None and rise < math.inf:
                ahead = x0 + 0.5 * rise / rise_before * (x0 - x0_before)
            xt = k * xt + a * ahead
            x0_before, rise_before = x0, rise
            yield xt, prediction
