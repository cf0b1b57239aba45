"""What a categorical noise process is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor

from trilemma.processes.categorical.schedules import Time
from trilemma.processes.noise import NoiseSource

Weighting = Literal["posterior", "joint"]
"""How log p(x0|xt) becomes p(xs|xt). The two agree for one-hot x0 and for pure masking, else they differ.

- "posterior": sum over x0 of q(xs|xt,x0) p(x0|xt), as in VQ-Diffusion (Gu et al. 2022, equation 11).
- "joint": proportional to q(xt|xs) * sum over x0 of q(xs|x0) p(x0|xt), as in D3PM (Austin et al. 2021, equation 4),
  multinomial diffusion, UDLM.
"""


class BoundTerms(NamedTuple):
    """Loss terms of one batch, each [B, L], in nats."""

    kl: Tensor
    """KL(q(xs|xt,x0) || p(xs|xt))."""
    cross_entropy: Tensor
    """-log p(x0|xt) of the network's own x0."""


class Rates(NamedTuple):
    """Instantaneous rates of the continuous-time chain, float64 shaped like t."""

    mask: Tensor
    """Rate at which a token that is not masked becomes masked."""
    replace: Tensor
    """Rate at which a token that is not masked is redrawn uniformly (it may land on its own class)."""


class CategoricalProcess(ABC):
    """A Markov chain on S states that forgets tokens x0 of K classes as t runs from 0 to 1.

    Shapes: B images, L tokens, K classes 0..K-1, S states of which the first K are the classes. Times s and t are a
        number, a scalar tensor
    or one time an image [B], with 0 <= s < t <= 1 arbitrary: a strided sampler is the same formula on a coarser grid.

    Attributes:
        num_classes: K.
        num_states: S.
    """

    num_classes: int
    num_states: int

    @abstractmethod
    def marginal(self, x0: Tensor, t: Time) -> Tensor:
        """Log q(xt|x0), float64 [B, L, S], of x0 int64 [B, L]."""

    @abstractmethod
    def sample(self, x0: Tensor, t: Time, noise: NoiseSource) -> Tensor:
        """Draw xt ~ q(xt|x0), int64 [B, L], of x0 int64 [B, L]."""

    @abstractmethod
    def transition(self, xs: Tensor, s: Time, t: Time) -> Tensor:
        """Log q(xt|xs), float64 [B, L, S], of xs int64 [B, L]."""

    @abstractmethod
    def posterior(self, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> Tensor:
        """Log p(xs|xt), with the total mass of `log_x0`: a truncated p(x0|xt) needs no renormalisation.

        Args:
            log_x0: log p(x0|xt), [B, L, K].
            xt: State at t, int64 [B, L].
            s: Earlier time.
            t: Later time.
            weighting: See `Weighting`.

        Returns:
            Log-probabilities [B, L, S] in the dtype of `log_x0`.
        """

    @abstractmethod
    def step(self, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting, noise: NoiseSource) -> Tensor:
        """Draw xs, int64 [B, L], from the distribution of `posterior` without forming it; `log_x0` needs no normalisation."""

    @abstractmethod
    def bound_terms(self, logits: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> BoundTerms:
        """KL to the true posterior and cross-entropy of x0, fused, differentiable in `logits`.

        Args:
            logits: Unnormalised log p(x0|xt), [B, L, K].
            x0: Clean tokens int64 [B, L].
            xt: A state that q(xt|x0) can reach, int64 [B, L].
            s: Earlier time; at s = 0 the KL is -log p(x0|xt) under the model's p(xs|xt).
            t: Later time.
            weighting: See `Weighting`.
        """

    def kl(self, log_x0: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> Tensor:
        """KL(q(xs|xt,x0) || p(xs|xt)) in nats, [B, L]; differentiable, O(K). See `bound_terms`."""
        return self.bound_terms(log_x0, x0, xt, s, t, weighting).kl

    @abstractmethod
    def rate(self, t: Time) -> Rates:
        """Rates of the continuous-time chain at t."""

    @abstractmethod
    def prior(self, shape: tuple[int, ...], noise: NoiseSource) -> Tensor:
        """Draw x1, int64 `shape` = (B, L), without knowing x0."""

    @abstractmethod
    def prior_kl(self, x0: Tensor) -> Tensor:
        """KL(q(x1|x0) || prior) in nats, float64 [B, L]."""

    @abstractmethod
    def is_known(self, xt: Tensor) -> Tensor:
        """Where xt names a class, rather than "not known yet": bool [B, L]."""
