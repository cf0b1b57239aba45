"""What a sampler asks for and what it is: the contracts of `samplers/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from trilemma.errors import UserError

if TYPE_CHECKING:
    from trilemma.conditions.base import Condition
    from trilemma.processes.categorical.base import Weighting
    from trilemma.processes.noise import NoiseSource
    from trilemma.samplers.guidance import Guidance


@dataclass(frozen=True)
class Prediction:
    """What a network believes of the clean data.

    Attributes:
        log_x0: Categorical processes: log p(x0 | xt) up to a constant a position (logits), float32 [B, L, K].
        weighting: How log_x0 is to be turned into p(xs | xt); part of what the network was trained to mean.
        x0: Gaussian processes: the predicted mean of x0, shaped like xt.
        variance_fraction: Learned variance: where between log beta_tilde (0) and log beta (1) the log-variance of any
            step s < t lies (Nichol and Dhariwal 2021, equation 15), shaped like xt. It holds for any stride.
        x0_variance: Mean over dimensions of Var[x0 | xt], a scalar or [B, 1, ...]: what the optimal variance of a step
            needs (Bao et al. 2022).
        bound: Data are known to lie in [-bound, bound]: samplers that clip, clip x0 to it.
    """

    log_x0: Tensor | None = None
    weighting: Weighting = "posterior"
    x0: Tensor | None = None
    variance_fraction: Tensor | None = None
    x0_variance: Tensor | None = None
    bound: float | None = None


class Denoiser(Protocol):
    """A network, seen from a sampler."""

    def __call__(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 from xt at times t [B].

        The state and times of a Gaussian sampler are float64: the denoiser casts both to its network's dtype.
        """


OnStep = Callable[[int, float, Tensor, Prediction], None]


class Sampler(ABC):
    """An algorithm that walks from noise to data over a (process, denoiser) pair.

    Attributes:
        num_steps: Steps of the walk.
        process_type: Class of the processes it walks; `object` for any.
    """

    num_steps: int
    process_type: ClassVar[type[Any]] = object

    def check(self, process: Any) -> None:
        """See that the sampler can walk this process, before anything is drawn.

        Raises:
            UserError: If it cannot, with what would fit.
        """
        if not isinstance(process, self.process_type):
            raise UserError(
                f"sampler {type(self).__name__} walks a {self.process_type.__name__}, and this model's process is a "
                f"{type(process).__name__}: choose another sampler="
            )

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
