"""What a sampler asks for and what it is: the contracts of `samplers/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from trilemma.conditions.base import Condition
    from trilemma.processes.categorical import Weighting
    from trilemma.processes.noise import NoiseSource
    from trilemma.samplers.guidance import Guidance


@dataclass(frozen=True)
class Prediction:
    """What a network believes of the clean data.

    Attributes:
        log_x0: Categorical processes: log p(x0 | xt) up to a constant a position (logits), float32 [B, L, K].
        x0: Gaussian processes: the predicted mean of x0, shaped like xt.
        log_variance: Gaussian processes with learned variance: shaped like xt.
        weighting: How log_x0 is to be turned into p(xs | xt); part of what the network was trained to mean.
    """

    log_x0: Tensor | None = None
    x0: Tensor | None = None
    log_variance: Tensor | None = None
    weighting: Weighting = "posterior"


class Denoiser(Protocol):
    """A network, seen from a sampler."""

    def __call__(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 from xt at times t [B]."""


OnStep = Callable[[int, float, Tensor, Prediction], None]


class Sampler(ABC):
    """An algorithm that walks from noise to data over a (process, denoiser) pair."""

    num_steps: int

    @abstractmethod
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
        """Draw x0.

        Args:
            denoiser: The network.
            process: The noise process the network was trained on.
            shape: Shape of x0, batch first.
            condition: What steers the samples; its `null` twin serves guidance.
            guidance: How branches of the condition are combined.
            noise: Source of all randomness.
            on_step: Called after each step as on_step(step, s, xs, prediction).
            x_start: State to start from at time `t_start`; the prior where None.
            t_start: Where the walk begins, in (0, 1].

        Returns:
            x0, shaped `shape`.
        """
