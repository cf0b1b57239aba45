"""Parallel decoding: predict all tokens, keep the most confident, mask the rest again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trilemma.capabilities import supports
from trilemma.errors import UserError
from trilemma.processes.categorical.base import Masks
from trilemma.processes.noise import NoiseSource
from trilemma.samplers.base import Prediction
from trilemma.samplers.categorical.ancestral import CategoricalSampler
from trilemma.samplers.guided import GuidedDenoiser

_NUM_HALVINGS = 60


class Confidence(CategoricalSampler):
    """Masks a share cos(pi/2 r) of all tokens at the fraction r of the steps (Chang et al. 2022, section 3.2).

    The network sees the time at which its process would have masked such a share. What is not masked stays.

    Args:
        num_steps: Network calls.
        choice_temperature: Of the Gumbel noise on log-confidences; it falls linearly to 0 with the steps.
        truncation: See `CategoricalSampler`.
        temperature: See there.

    Raises:
        UserError: If an option is out of its range.
    """

    def __init__(
        self, num_steps: int, *, choice_temperature: float = 4.5, truncation: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(num_steps, truncation=truncation, temperature=temperature)
        if not 0.0 <= choice_temperature < math.inf:
            raise UserError(f"sampler.choice_temperature={choice_temperature}: must be at least 0; 0 is greedy")
        self.choice_temperature = choice_temperature

    def check(self, subject: Any) -> None:
        """See `Sampler`; the process must only ever mask."""
        super().check(subject)
        if not supports(subject, Masks):
            raise UserError(
                f"sampler {type(self).__name__} masks tokens again, and this {type(subject).__name__} replaces them: take "
                "process=absorbing, process.schedule.mask_fraction=1, or sampler=ancestral"
            )

    def times(self, process: Any, t_start: float = 1.0) -> Sequence[float]:
        """See `DenoisingSampler`."""
        begin = math.acos(float(process.mask_probability(t_start)))
        angles = [begin + (math.pi / 2 - begin) * i / self.num_steps for i in range(1, self.num_steps)]
        return [t_start, *(_time_of(process, math.cos(angle), t_start) for angle in angles), 0.0]

    def trajectory(
        self, xt: Tensor, times: Sequence[float], denoiser: GuidedDenoiser
    ) -> Iterator[tuple[Tensor, Prediction]]:
        """See `DenoisingSampler`.

        Raises:
            UserError: If the guidance works on p(xs|xt), which is never formed.
        """
        process, noise = denoiser.process, denoiser.noise
        if denoiser.guidance.on_posterior is not None:
            raise UserError(f"guidance {type(denoiser.guidance).__name__} guides p(xs|xt): take sampler=ancestral")
        for step, (t, s) in enumerate(pairwise(times)):
            log_x0, prediction = self.predict(denoiser, xt, t)
            log_p = log_x0.double().log_softmax(-1)
            masked = ~process.is_known(xt)
            x0 = torch.where(masked, noise.categorical(log_p, log=True), xt)
            heat = self.choice_temperature * (1 - (step + 1) / self.num_steps)
            confidence = log_p.gather(-1, x0[..., None])[..., 0] + heat * _gumbel(noise, tuple(xt.shape))
            share = float(process.mask_probability(s))
            xt = process.mask(x0, _least(confidence, masked, math.floor(share * xt.shape[1] + 1e-9)))
            yield xt, prediction


def _least(confidence: Tensor, masked: Tensor, num: int) -> Tensor:
    """Of the masked tokens those `num` of least confidence, though one at least is left out where there is one, bool [B, L]."""
    rank = confidence.masked_fill(~masked, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return masked & (rank < (masked.sum(1, keepdim=True) - 1).clamp(max=num))


def _gumbel(noise: NoiseSource, shape: tuple[int, ...]) -> Tensor:
    return -(-noise.uniform(shape, dtype=torch.float64).clamp(min=2.0**-54).log()).log()


def _time_of(process: Any, share: float, latest: float) -> float:
    """The time before `latest` at which a token is masked with that probability, which rises with time."""
    low, high = 0.0, latest
    for _ in range(_NUM_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(process.mask_probability(middle)) < share else (low, middle)
    return high
