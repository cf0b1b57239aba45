"""Ancestral sampling of Gaussian processes at any stride."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian.base import GaussianSampler, conditional_x0, step_pairs
from trilemma.samplers.gaussian.grids import Grid
from trilemma.samplers.guided import GuidedDenoiser

Variance = Literal["small", "large", "learned", "optimal"]
"""Variance of p(xs|xt).

- "small": beta tilde of the step, right for data without variance (Ho et al. 2020, section 3.2).
- "large": beta of the step, right for data of unit variance.
- "learned": between the two in logarithm, where the network says (Nichol and Dhariwal 2021, equation 15).
- "optimal": beta tilde plus what x0 is uncertain by, right for any data (Bao et al. 2022, theorem 1).
"""


class GaussianAncestral(GaussianSampler):
    """Draws xs from N(mu, var), mu the mean of q(xs|xt, x0) at the predicted x0; no noise in the last step.

    Source: Ho et al. 2020, algorithm 2. A guidance with a gradient moves mu by var times it (Dhariwal and Nichol 2021,
    algorithm 1).

    Args:
        num_steps: Network calls.
        variance: See `Variance`.
        grid: See `Grid`.
        clip: See `GaussianSampler`.

    Raises:
        UserError: If an option is out of its range.
    """

    def __init__(
        self, num_steps: int, *, variance: Variance = "small", grid: Grid = "trailing", clip: bool = True
    ) -> None:
        super().__init__(num_steps, grid=grid, clip=clip)
        if variance not in get_args(Variance):
            raise UserError(f"sampler.variance={variance}: choose one of {', '.join(get_args(Variance))}")
        self.variance: Variance = variance

    def trajectory(
        self, xt: Tensor, times: Sequence[float], denoiser: GuidedDenoiser
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """See `GaussianSampler`.

        Raises:
            UserError: If the model does not know what the variance needs.
        """
        process, (t, s) = denoiser.process, step_pairs(times)
        c0, ct, small = (part.tolist() for part in process.posterior_coefficients(s, t))
        large = process.transition(s, t)[1].tolist()
        log_range = torch.stack(process.log_variance_range(s, t)).T.tolist()
        for i, time in enumerate(times[:-1]):
            x0, prediction = conditional_x0(denoiser, xt, time, clip=self.clip)
            variance = self._variance(prediction, c0[i], small[i], large[i], log_range[i])
            mean = c0[i] * x0 + ct[i] * xt
            if denoiser.guidance.gradient is not None:
                mean = mean + variance * denoiser.guidance.gradient(xt, time, denoiser.condition).to(xt.dtype)
            if times[i + 1] > 0.0:
                std = variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)
                mean = mean + std * denoiser.noise.normal(tuple(xt.shape), dtype=xt.dtype)
            xt = mean
            yield xt, prediction

    def _variance(
        self, prediction: Prediction, c0: float, small: float, large: float, log_range: list[float]
    ) -> Tensor | float:
        if self.variance == "small":
            return small
        if self.variance == "large":
            return large
        if self.variance == "learned" and prediction.variance_fraction is not None:
            log_small, log_large = log_range
            return torch.exp(log_small + (log_large - log_small) * prediction.variance_fraction.double())
        if self.variance == "optimal" and prediction.x0_variance is not None:
            return small + c0**2 * prediction.x0_variance.double()
        allowed = ["small", "large"]
        allowed += ["learned"] if prediction.variance_fraction is not None else []
        allowed += ["optimal"] if prediction.x0_variance is not None else []
        raise UserError(
            f"sampler.variance={self.variance}: this checkpoint knows nothing of it; choose one of {', '.join(allowed)}"
        )
