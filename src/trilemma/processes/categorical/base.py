"""The interface of a categorical noise process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trilemma.processes.categorical import dense
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


@runtime_checkable
class Masks(Protocol):
    """A process that only ever masks tokens: an unmasked token is clean, a masked one carries no information.

    Ask with `supports(process, Masks)`: whether a process has it may depend on its schedule.
    """

    def mask(self, xt: Tensor, where: Tensor) -> Tensor:
        """Replace the tokens at `where`, bool [B, L], by the mask: the state xt, int64 [B, L]."""

    def mask_probability(self, t: Time) -> Tensor:
        """Compute the probability that a token is masked at t, float64 shaped like t."""


class CategoricalProcess(nn.Module, ABC):
    """A Markov chain on S states that forgets tokens x0 of K classes as t runs from 0 to 1.

    Shapes: B images, L tokens, K classes 0..K-1, S states of which the first K are the classes. Times s and t are a
    number, a scalar tensor or one time an image [B], with 0 <= s < t <= 1 arbitrary: a strided sampler is the same
    formula on a coarser grid.

    A process states `num_classes`, `num_states`, `marginal` and `transition`; all else follows from these two, as dense
    sums over classes and states in float64, O(K S) a token. One that knows a closed form overrides what it does better.

    Attributes:
        num_classes: K.
        num_states: S.
        unsupported: Capabilities (`Masks`) that the class has and this process, by its schedule, has not; see `supports`.
    """

    num_classes: int
    num_states: int
    unsupported: frozenset[type] = frozenset()

    @abstractmethod
    def marginal(self, x0: Tensor, t: Time) -> Tensor:
        """Compute log q(xt|x0), float64 [B, L, S], of x0 int64 [B, L]; at t = 0 all mass is at x0."""

    @abstractmethod
    def transition(self, xs: Tensor, s: Time, t: Time) -> Tensor:
        """Compute log q(xt|xs), float64 [B, L, S], of xs int64 [B, L]."""

    def sample(self, x0: Tensor, t: Time, noise: NoiseSource) -> Tensor:
        """Draw xt ~ q(xt|x0), int64 [B, L], of x0 int64 [B, L]."""
        return noise.categorical(self.marginal(x0, t), log=True)

    def posterior(self, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> Tensor:
        """Compute log p(xs|xt), with the total mass of `log_x0`: a truncated p(x0|xt) needs no renormalisation.

        A class that cannot have become xt does not count; its mass goes to the others in proportion. Where only such
        classes have mass, x0 is taken to be uniform. So under pure masking a token that is not masked stays what it is.

        Args:
            log_x0: log p(x0|xt), [B, L, K].
            xt: State at t, int64 [B, L].
            s: Earlier time.
            t: Later time.
            weighting: See `Weighting`.

        Returns:
            Log-probabilities [B, L, S] in the dtype of `log_x0`.
        """
        return dense.posterior(self, log_x0, xt, s, t, weighting).to(log_x0.dtype)

    def step(self, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting, noise: NoiseSource) -> Tensor:
        """Draw xs, int64 [B, L], from the distribution of `posterior`; `log_x0` needs no normalisation."""
        normalised = log_x0.double().log_softmax(-1)
        return noise.categorical(dense.posterior(self, normalised, xt, s, t, weighting), log=True)

    def bound_terms(self, logits: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> BoundTerms:
        """Compute the KL to the true posterior and the cross-entropy of x0, differentiable in `logits`.

        Args:
            logits: Unnormalised log p(x0|xt), [B, L, K].
            x0: Clean tokens int64 [B, L].
            xt: A state that q(xt|x0) can reach, int64 [B, L].
            s: Earlier time; at s = 0 the KL is -log p(x0|xt) under the model's p(xs|xt).
            t: Later time.
            weighting: See `Weighting`.

        Returns:
            Both in float32, or float64 where the logits are.
        """
        kl, cross_entropy = dense.bound_terms(self, logits, x0, xt, s, t, weighting)
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return BoundTerms(kl.to(dtype), cross_entropy.to(dtype))

    def kl(self, log_x0: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> Tensor:
        """Compute KL(q(xs|xt,x0) || p(xs|xt)) in nats, [B, L]; differentiable. See `bound_terms`."""
        return self.bound_terms(log_x0, x0, xt, s, t, weighting).kl

    def prior(self, shape: tuple[int, ...], noise: NoiseSource) -> Tensor:
        """Draw x1, int64 `shape` = (B, L), without knowing x0: from q(x1|x0) averaged over uniform x0."""
        probs = dense.log_prior(self, noise.device).exp()
        return noise.categorical(probs.expand(*shape, self.num_states))

    def prior_kl(self, x0: Tensor) -> Tensor:
        """Compute KL(q(x1|x0) || prior) in nats, float64 [B, L]."""
        return dense.prior_kl(self, x0.device)[x0]

    def is_known(self, xt: Tensor) -> Tensor:
        """Find where xt names a class rather than the mask: bool [B, L]."""
        return xt < self.num_classes
