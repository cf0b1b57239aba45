"""Mask-and-replace, absorbing and uniform processes: closed under composition, O(K) a token for any 0 <= s < t <= 1."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trilemma.errors import UserError
from trilemma.processes.categorical.base import BoundTerms, CategoricalProcess, Masks, Weighting
from trilemma.processes.categorical.closed_form_bound import closed_form_bound
from trilemma.processes.categorical.coefficients import (
    ROUNDING,
    Coefficients,
    Rates,
    check_chain,
    coefficients,
    ever_replaces,
    masses,
    positive,
    rates,
)
from trilemma.processes.categorical.schedules import Schedule, Time
from trilemma.processes.inverse_cdf import inverse_cdf
from trilemma.processes.noise import NoiseSource

_CACHE_ELEMENTS = 2**17
"""Elements that a CPU's inner caches hold: larger inputs go through in chunks of rows."""


class MaskAndReplace(CategoricalProcess):
    """Tokens are masked, replaced by a uniformly drawn class, or kept; the mask is state K and keeps what it has.

    Given x0, the state at t is x0 with probability alpha_bar, the mask with gamma_bar, and a uniform class with the
    rest (Gu et al. 2022, equations 7 and 8). The family is closed: Q_{t|s} has a = alpha_bar(t)/alpha_bar(s) and c =
    1 - (1 - gamma_bar(t))/(1 - gamma_bar(s)).

    With a schedule that never replaces, a token that is not masked stays what it is whatever p(x0|xt) says, and the
    process has the capability `Masks`.

    Args:
        num_classes: K.
        schedule: alpha_bar and gamma_bar.

    Raises:
        UserError: If the schedule is not that of a Markov chain.
    """

    _default_mask_fraction = 0.9
    _has_mask = True

    def __init__(self, num_classes: int, schedule: Schedule) -> None:
        if num_classes < 2:
            raise UserError(f"process.num_classes={num_classes}: a categorical process needs at least 2 classes")
        super().__init__()
        self.num_classes = num_classes
        self.num_states = num_classes + self._has_mask
        self.schedule = schedule.split(self._default_mask_fraction)
        self._check_schedule()
        if not self._has_mask or ever_replaces(self.schedule):
            self.unsupported = frozenset({Masks})

    def marginal(self, x0: Tensor, t: Time) -> Tensor:
        """See `CategoricalProcess`."""
        alpha, gamma, lost = masses(self.schedule, t)
        return self._one_step(x0, keep=alpha, replace=lost / self.num_classes, mask=gamma)

    def sample(self, x0: Tensor, t: Time, noise: NoiseSource) -> Tensor:
        """See `CategoricalProcess`. One uniform number a token decides between mask, class and itself, and its rest picks the class."""
        alpha, _, lost = masses(self.schedule, t)
        u = noise.uniform(tuple(x0.shape), dtype=torch.float64)
        changed = self._class_of((u - alpha) / positive(lost))
        if self._has_mask:
            # The mask's share comes last: alpha + gamma may round away a tiny replacement, alpha + lost does not.
            changed = torch.where(u < alpha + lost, changed, self.num_classes)
        return torch.where(u < alpha, x0, changed)

    def transition(self, xs: Tensor, s: Time, t: Time) -> Tensor:
        """See `CategoricalProcess`."""
        c = self._coefficients(s, t)
        mask = (c.gamma_t - c.gamma_s) / positive(c.unmasked_s)
        return self._one_step(xs, keep=c.keep, replace=c.replace, mask=mask)

    def posterior(self, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> Tensor:
        """See `CategoricalProcess`."""
        c = self._coefficients(s, t)
        known = self.is_known(xt)
        held = torch.where(known, xt, 0).unsqueeze(-1)
        log_mass = log_x0.logsumexp(-1)

        def column(x: Tensor) -> Tensor:
            return x.log().to(log_x0).expand(xt.shape)

        # q(xt|x0), which "posterior" divides p(x0|xt) by, class by class, and "joint" only on the whole.
        log_hit = torch.logaddexp(column(c.alpha_t), column(c.replaced_t))
        log_miss = column(c.replaced_t)
        frozen = known & (c.replaced_t == 0)
        divided = known & ~frozen
        if weighting == "posterior":
            log_likelihood = torch.where(divided, log_miss, 0.0).unsqueeze(-1).expand_as(log_x0)
            log_likelihood = log_likelihood.scatter(-1, held, torch.where(divided, log_hit, 0.0).unsqueeze(-1))
            weight = log_x0 - log_likelihood
            log_total = weight.logsumexp(-1)
            log_scale = torch.zeros_like(log_mass)
        else:
            weight = log_x0
            log_total = log_mass
            evidence = torch.logaddexp(column(c.alpha_t) + log_x0.gather(-1, held).squeeze(-1), log_miss + log_mass)
            log_scale = torch.where(divided, log_mass - evidence, 0.0)

        reached = torch.logaddexp(
            column(c.alpha_s).unsqueeze(-1) + weight, (column(c.replaced_s) + log_total).unsqueeze(-1)
        )
        log_step = torch.where(known, column(c.replace), column(c.reveal / positive(c.unmasked_s)))
        log_stay = torch.where(known, column(c.keep + c.replace), log_step)
        factor = (log_step + log_scale).unsqueeze(-1).expand_as(log_x0)
        factor = factor.scatter(-1, held, (log_stay + log_scale).unsqueeze(-1))
        out = reached + factor
        # Nothing is ever replaced: a token that is not masked stays, whatever p(x0|xt) says.
        stays = torch.full_like(out, -torch.inf).scatter(-1, held, log_mass.unsqueeze(-1))
        out = torch.where(frozen.unsqueeze(-1), stays, out)
        if not self._has_mask:
            return out
        log_masked = torch.where(known, -torch.inf, column(c.gamma_s / positive(c.gamma_t)) + log_mass)
        return torch.cat([out, log_masked.unsqueeze(-1)], -1)

    def step(self, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting, noise: NoiseSource) -> Tensor:
        """See `CategoricalProcess`.

        A token stays, goes to a class that p(x0|xt) names, or to one that is drawn uniformly. Which of the three needs
        no more than p(x0 = xt|xt), and for a masked token not even that. So one uniform a token decides, its remainder
        names the class, and p(x0|xt) is drawn from only where a token goes: a few positions a step.
        """
        c = self._coefficients(s, t)
        known = self.is_known(xt)
        stay, go, anywhere = self._moves(log_x0, xt, known, c, weighting)
        total = stay + go + anywhere
        # A token that nothing can have changed (all three weights zero) stays.
        u = noise.uniform(tuple(xt.shape), dtype=torch.float64)
        level = u * total - stay
        moves = (level >= 0) & (go + anywhere > 0)
        goes = moves & ((level < go) | (anywhere == 0))
        uniform = self._class_of((level - go) / positive(anywhere))
        out = torch.where(moves, uniform, xt)

        rows = goes.flatten().nonzero().squeeze(1) if _can_pick(xt.device) else slice(None)
        if not isinstance(rows, slice) and len(rows) == 0:
            return out
        weights = log_x0.flatten(0, -2)[rows].softmax(-1)
        # A known token that goes, goes elsewhere.
        held = torch.where(known, xt, 0).flatten()[rows].unsqueeze(1)
        here = torch.where(known.flatten()[rows].unsqueeze(1), 0.0, weights.gather(1, held))
        weights = weights.scatter(1, held, here.to(weights.dtype))
        share = (level / positive(go)).flatten()[rows].clamp(0.0, 1.0 - 2.0**-53)
        if isinstance(rows, slice):
            weights = torch.where(goes.flatten().unsqueeze(1), weights, 1.0)
            return torch.where(goes, inverse_cdf(weights, share).view(xt.shape), out)
        out.view(-1)[rows] = inverse_cdf(weights, share)
        return out

    def _moves(
        self, log_x0: Tensor, xt: Tensor, known: Tensor, c: Coefficients, weighting: Weighting
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the weights with which a token stays, goes to another class of p(x0|xt), or to a uniform class, [B, L]."""
        here, rest = self._split_at(log_x0, xt, known & (c.replaced_t > 0).to(xt.device))
        step = c.replace * c.alpha_s
        uniform = self.num_classes * c.replace * c.replaced_s
        slip = c.keep * c.replaced_s
        if weighting == "posterior":
            hit, miss = here / positive(c.alpha_t + c.replaced_t), rest / positive(c.replaced_t)
            stay = hit * (c.alpha_t + slip + step) + miss * slip
            go = miss * step
            anywhere = (hit + miss) * uniform
        else:
            stay, go, anywhere = here * (c.alpha_t + step) + slip, rest * step, uniform.expand(xt.shape)
        if not self._has_mask:
            return stay, go, anywhere
        scale = c.reveal * c.gamma_t / positive(c.unmasked_s)
        return (
            torch.where(known, stay, c.gamma_s),
            torch.where(known, go, scale * c.alpha_s),
            torch.where(known, anywhere, scale * self.num_classes * c.replaced_s),
        )

    def _split_at(self, log_x0: Tensor, xt: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Compute p(x0 = xt|xt) and the mass of all other classes `where` asked for, float64 [B, L]; undefined elsewhere.

        The others are summed: 1 - p would lose a small mass to rounding.
        """
        weights, held = log_x0.flatten(0, -2), torch.where(where, xt, 0).flatten().unsqueeze(1)
        if not _can_pick(xt.device):
            here, rest = _part(weights, held)
            return here.view(xt.shape), rest.view(xt.shape)
        both = torch.ones(2, xt.numel(), dtype=torch.float64)
        rows = where.flatten().nonzero().squeeze(1)
        for chunk in torch.split(rows, max(1, _CACHE_ELEMENTS // self.num_classes)):
            both[0, chunk], both[1, chunk] = _part(weights.index_select(0, chunk), held.index_select(0, chunk))
        return both[0].view(xt.shape), both[1].view(xt.shape)

    def bound_terms(self, logits: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> BoundTerms:
        """See `CategoricalProcess`."""
        return closed_form_bound(logits, x0, xt, self.is_known(xt), self._coefficients(s, t), weighting)

    def rate(self, t: Time) -> Rates:
        """Compute the rates of the continuous-time chain at t."""
        return rates(self.schedule, t)

    def prior(self, shape: tuple[int, ...], noise: NoiseSource) -> Tensor:
        """See `CategoricalProcess`: gamma_bar(1) of its mass is the mask, the rest is uniform over classes."""
        alpha, _, lost = masses(self.schedule, 1.0)
        u = noise.uniform(shape, dtype=torch.float64)
        uniform = self._class_of(u / positive(alpha + lost))
        if not self._has_mask:
            return uniform
        return torch.where(u < alpha + lost, uniform, self.num_classes)

    def prior_kl(self, x0: Tensor) -> Tensor:
        """See `CategoricalProcess`."""
        c = self._coefficients(0.0, 1.0)
        level = (1.0 - c.gamma_t) / self.num_classes
        hit = c.alpha_t + c.replaced_t
        nats: Tensor = hit.xlogy(hit / positive(level))
        nats = nats + (self.num_classes - 1) * c.replaced_t.xlogy(c.replaced_t / positive(level))
        return nats.to(x0.device).expand(x0.shape)

    def mask(self, xt: Tensor, where: Tensor) -> Tensor:
        """See `Masks`."""
        return torch.where(where, self.num_classes, xt)

    def mask_probability(self, t: Time) -> Tensor:
        """See `Masks`."""
        return self.schedule.gamma_bar(t)

    def log_snr(self, t: Time) -> Tensor:
        """Compute log(alpha_bar / (1 - alpha_bar)), float64 shaped like t."""
        return torch.logit(self.schedule.alpha_bar(t))

    def _one_step(self, x: Tensor, *, keep: Tensor, replace: Tensor, mask: Tensor) -> Tensor:
        """Compute the log of keep * onehot(x) + replace (every class) + mask (the mask), [B, L, S]; a masked x stays masked."""
        known = self.is_known(x)
        out = torch.where(known, replace, 0.0).unsqueeze(-1).repeat(1, 1, self.num_states)
        if self._has_mask:
            out[..., -1] = torch.where(known, mask, 0.0)
        return out.scatter(-1, x.unsqueeze(-1), torch.where(known, keep + replace, 1.0).unsqueeze(-1)).log()

    def _coefficients(self, s: Time, t: Time) -> Coefficients:
        return coefficients(self.schedule, self.num_classes, s, t)

    def _class_of(self, u: Tensor) -> Tensor:
        """Pick the class of u in [0, 1); clamped, because u is a quotient that may round to 1."""
        return (u * self.num_classes).to(torch.int64).clamp(0, self.num_classes - 1)

    def _check_schedule(self) -> None:
        check_chain(self.schedule)


class Absorbing(MaskAndReplace):
    """Tokens are masked, never replaced (Austin et al. 2021, section 3.1).

    Raises:
        UserError: If the schedule replaces tokens.
    """

    _default_mask_fraction = 1.0

    def bound_terms(self, logits: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting) -> BoundTerms:
        """See `CategoricalProcess`: the share unmasked between t and s, times the cross-entropy, on masked tokens."""
        cross_entropy = F.cross_entropy(_full(logits).flatten(0, -2), x0.flatten(), reduction="none").view(x0.shape)
        reveal = self._coefficients(s, t).reveal.to(cross_entropy.dtype)
        return BoundTerms(torch.where(self.is_known(xt), 0.0, reveal * cross_entropy), cross_entropy)

    def _check_schedule(self) -> None:
        super()._check_schedule()
        if ever_replaces(self.schedule):
            raise UserError(
                "an absorbing process never replaces tokens: set schedule.mask_fraction=1, or take mask_and_replace"
            )


class Uniform(MaskAndReplace):
    """Tokens are replaced by a uniformly drawn class, never masked: multinomial diffusion, D3PM uniform. S = K.

    Source: Hoogeboom et al. 2021, "Argmax Flows and Multinomial Diffusion", section 4.

    Raises:
        UserError: If the schedule masks tokens.
    """

    _default_mask_fraction = 0.0
    _has_mask = False

    def _check_schedule(self) -> None:
        super()._check_schedule()
        if (masses(self.schedule, torch.linspace(0, 1, 1_001, dtype=torch.float64))[1] > ROUNDING).any():
            raise UserError("a uniform process has no mask: set schedule.mask_fraction=0, or take mask_and_replace")


def _full(logits: Tensor) -> Tensor:
    """Convert to at least float32."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _can_pick(device: torch.device) -> bool:
    """Check whether to compute selected positions alone. Counting them synchronises an accelerator: there all are computed."""
    return device.type == "cpu"


def _part(logits_nk: Tensor, held_n1: Tensor) -> tuple[Tensor, Tensor]:
    """Compute softmax(logits) at the class held and its sum over the others, float64 [N]."""
    p = logits_nk.softmax(-1)
    here = p.gather(1, held_n1).squeeze(1).double()
    return here, p.scatter_(1, held_n1, 0.0).sum(1).double()
