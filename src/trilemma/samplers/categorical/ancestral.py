"""Ancestral sampling of categorical processes at any stride."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.errors import UserError
from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import Denoiser, OnStep, Prediction, Sampler
from trilemma.samplers.categorical.truncation import truncate
from trilemma.samplers.guidance import Guidance
from trilemma.samplers.predict import predict


class Ancestral(Sampler):
    """Walks the exact strided posterior p(xs|xt) down the grid t_start * i / num_steps, i = num_steps..0.

    Args:
        num_steps: Network calls.
        truncation: r of top-r truncation of p(x0|xt), in (0, 1]; 1 keeps everything.
        temperature: Divides log p(x0|xt); below 1 sharpens.

    Raises:
        UserError: If an option is out of its range.
    """

    process_type = CategoricalProcess

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

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        process: Any,
        shape: tuple[int, ...],
        *,
        condition: Condition,
        guidance: Guidance,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        x_start: Tensor | None = None,
        t_start: float = 1.0,
    ) -> Tensor:
        """See `Sampler`; x0 is int64 [B, L].

        Raises:
            ValueError: If `t_start` is not in (0, 1], or below 1 without an `x_start`.
        """
        if not 0.0 < t_start <= 1.0:
            raise ValueError(f"t_start={t_start}: must lie in (0, 1]")
        if x_start is None and t_start < 1.0:
            raise ValueError(f"a walk from t_start={t_start} needs the state x_start to start from")
        xt = process.prior(shape, noise) if x_start is None else x_start
        for step in range(self.num_steps):
            t = t_start * (1 - step / self.num_steps)
            s = t_start * (1 - (step + 1) / self.num_steps)
            prediction = self._sharpened(predict(denoiser, process, xt, t, condition, guidance, noise))
            log_x0, weighting = prediction.log_x0, prediction.weighting
            if log_x0 is None:
                raise ValueError("a categorical sampler needs a network that predicts log_x0")
            if guidance.on_posterior is None:
                xt = process.step(log_x0, xt, s, t, weighting, noise)
            else:
                log_ps = process.posterior(log_x0.log_softmax(-1), xt, s, t, weighting)
                xt = noise.categorical(guidance.on_posterior(log_ps, process, xt, t), log=True)
            if on_step is not None:
                on_step(step, s, xt, prediction)
        return xt

    def _sharpened(self, prediction: Prediction) -> Prediction:
        """The prediction, tempered and truncated."""
        log_x0 = prediction.log_x0
        if log_x0 is None or (self.temperature == 1.0 and self.truncation == 1.0):
            return prediction
        if self.temperature != 1.0:
            log_x0 = log_x0 / self.temperature
        return replace(prediction, log_x0=truncate(log_x0, self.truncation))
