"""The contracts of `samplers/`: what a sampler is, and what it asks of a network."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from trilemma.config.options import options_of
from trilemma.errors import UserError

if TYPE_CHECKING:
    from trilemma.conditions.base import Condition
    from trilemma.processes.categorical.base import Weighting
    from trilemma.processes.noise import NoiseSource


@dataclass(frozen=True)
class Prediction:
    """A network's prediction of the clean data.

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
    """A network, as a sampler calls it."""

    def __call__(self, xt: Tensor, t: Tensor, condition: Condition, noise: NoiseSource) -> Prediction:
        """Predict x0 from xt at times t [B].

        The state and times of a Gaussian sampler are float64: the denoiser casts both to its network's dtype.
        """


OnStep = Callable[[int, float, Tensor, Prediction], None]
"""Called after each step as on_step(step, s, xs, prediction)."""


class Sampler(ABC):
    """An algorithm that draws from a model.

    Attributes:
        draws_from: Class, or `Protocol`, of what it draws from: a kind of process, or an autoregressive model.
    """

    draws_from: ClassVar[type[Any]]

    @classmethod
    def fits(cls, kind: type[Any]) -> bool:
        """Check whether it draws from objects of a class."""
        return issubclass(kind, cls.draws_from)

    @classmethod
    def check_kind(cls, kind: type[Any]) -> None:
        """Check, before there is an object, that it draws from objects of a class.

        Raises:
            UserError: If not, with the samplers that do.
        """
        if not cls.fits(kind):
            others = options_of("sampler", lambda other: issubclass(other, Sampler) and other.fits(kind))
            choice = " or ".join(f"sampler={name}" for name in others) or "another sampler"
            raise UserError(
                f"sampler {cls.__name__} draws from a {cls.draws_from.__name__}, not from a "
                f"{kind.__name__}: choose {choice}"
            )

    def check(self, subject: Any) -> None:
        """Check, before anything is drawn, that it can draw from this process or model with its settings.

        Raises:
            UserError: If it cannot, with what would fit.
        """
        self.check_kind(type(subject))
