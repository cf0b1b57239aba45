"""Ancestral sampling of categorical processes at any stride."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from trilemma.distributions.truncation import truncate
from trilemma.errors import UserError
from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.samplers.base import Prediction
from trilemma.samplers.denoising import DenoisingSampler
from trilemma.samplers.guided import GuidedDenoiser


class CategoricalSampler(DenoisingSampler):
    """Steps down the grid t_start * i / num_steps, i = num_steps..0, with a tempered and truncated p(x0|xt).

    Args:
        num_steps: Network calls.
        truncation: r of top-r truncation of p(x0|xt), in (0, 1]; 1 keeps everything.
        temperature: Divides log p(x0|xt); below 1 sharpens.

    Raises:
        UserError: If an option is out of its range.
    """

    draws_from = CategoricalProcess

    def __init__(self, num_steps: int, *, truncation: float = 1.0, temperature: float = 1.0) -> None:
        if num_steps < 1:
            raise UserError(f"sampler.num_steps={num_steps}: must be at least 1")
        if not 0.0 < truncation <= 1.0:
            raise UserError(f"sampler.truncation={truncation}: must lie in (0, 1]; 1 keeps every class")
        if not 0.0 < temperature < math.inf:
            raise UserError(f"sampler.temperature={temperature}: must be a positive number; 1 changes nothing")
        self.num_steps = num_steps
        self.truncation = truncation
        self.temperature = temperature

    def times(self, process: Any, t_start: float = 1.0) -> Sequence[float]:
        """See `DenoisingSampler`."""
        del process
        return [t_start * i / self.num_steps for i in range(self.num_steps, -1, -1)]

    def predict(self, denoiser: GuidedDenoiser, xt: Tensor, t: float) -> tuple[Tensor, Prediction]:
        """Compute the guided, tempered and truncated log p(x0|xt) [B, L, K], up to a constant a position, and its prediction.

        Raises:
            ValueError: If the network predicts no log_x0.
        """
        prediction = denoiser.predict(xt, t)
        if prediction.log_x0 is None:
            raise ValueError("a categorical sampler needs a network that predicts log_x0")
        log_x0 = prediction.log_x0
        if self.temperature != 1.0:
            log_x0 = log_x0 / self.temperature
        if self.truncation != 1.0 or self.temperature != 1.0:
            log_x0 = truncate(log_x0, self.truncation)
            prediction = replace(prediction, log_x0=log_x0)
        return log_x0, prediction


class Ancestral(CategoricalSampler):
    """Draws from the exact strided posterior p(xs|xt); x0 is int64 [B, L]."""

    def trajectory(
        self, xt: Tensor, times: Sequence[float], denoiser: GuidedDenoiser
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """See `DenoisingSampler`."""
        process, noise, on_posterior = denoiser.process, denoiser.noise, denoiser.guidance.on_posterior
        for t, s in pairwise(times):
            log_x0, prediction = self.predict(denoiser, xt, t)
            if on_posterior is None:
                xt = process.step(log_x0, xt, s, t, prediction.weighting, noise)
            else:
                log_ps = process.posterior(log_x0.log_softmax(-1), xt, s, t, prediction.weighting)
                xt = noise.categorical(on_posterior(log_ps, process, xt, t), log=True)
            yield xt, prediction
