"""The general forms, from q(xt|x0) and q(xt|xs) alone: sums over K classes and S states, as log-probabilities in float64.

Images that share their times share a K x S and two S-sized tables; their tokens go through as rows [N] a chunk at a
time, so that no [B, L, K, S] is ever formed, and a backward pass forms the chunks once more instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trilemma.processes.categorical.schedules import Time, as_float64

if TYPE_CHECKING:
    from trilemma.processes.categorical.base import CategoricalProcess, Weighting

_CHUNK_ELEMENTS = 2**21
"""Elements of one float64 temporary, 16 MiB."""

_TINY = 1e-250
"""A sum of products below this may have lost terms to underflow."""


@dataclass(frozen=True)
class _Tables:
    """The process at one pair of times, log-probabilities in float64.

    Attributes:
        marginal_s: log q(xs|x0), [K, S].
        marginal_t: log q(xt|x0) by xt, [S, K].
        step: log q(xt|xs) by xt, [S (xt), S (xs)].
    """

    marginal_s: Tensor
    marginal_t: Tensor
    step: Tensor


def posterior(
    process: CategoricalProcess, log_x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting
) -> Tensor:
    """Compute `CategoricalProcess.posterior` in float64, [B, L, S]."""

    def rows(tables: _Tables, xt_n: Tensor, log_x0_nk: Tensor) -> tuple[Tensor]:
        return (_log_posterior(tables, log_x0_nk.double(), xt_n, weighting),)

    (log_ps,) = _over_rows(process, rows, s, t, xt, log_x0)
    return log_ps


def bound_terms(
    process: CategoricalProcess, logits: Tensor, x0: Tensor, xt: Tensor, s: Time, t: Time, weighting: Weighting
) -> tuple[Tensor, Tensor]:
    """Compute `CategoricalProcess.bound_terms` in float64: KL and cross-entropy, each [B, L]."""

    def rows(tables: _Tables, xt_n: Tensor, logits_nk: Tensor, x0_n: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits_nk.double().log_softmax(-1)
        cross_entropy = -log_p.gather(-1, x0_n[:, None])[:, 0]
        log_q = tables.marginal_s[x0_n] + tables.step[xt_n] - tables.marginal_t[xt_n, x0_n][:, None]
        log_ps = _log_posterior(tables, log_p, xt_n, weighting)
        possible = log_q > -torch.inf
        gap = torch.where(possible, log_q, 0.0) - torch.where(possible, log_ps, 0.0)
        return (log_q.exp() * gap).sum(-1), cross_entropy

    kl, cross_entropy = _over_rows(process, rows, s, t, xt, logits, x0)
    return kl, cross_entropy


def log_prior(process: CategoricalProcess, device: torch.device) -> Tensor:
    """Compute the log of q(x1|x0) averaged over uniform x0, float64 [S]."""
    last = process.marginal(_all(process.num_classes, device), 1.0)[0]
    return last.exp().mean(0).log()


def prior_kl(process: CategoricalProcess, device: torch.device) -> Tensor:
    """Compute KL(q(x1|x0) || prior) in nats for every x0, float64 [K]."""
    last = process.marginal(_all(process.num_classes, device), 1.0)[0]
    gap = torch.where(last > -torch.inf, last - log_prior(process, device), 0.0)
    return (last.exp() * gap).sum(-1)


def _log_posterior(tables: _Tables, log_p: Tensor, xt: Tensor, weighting: Weighting) -> Tensor:
    """Compute log p(xs|xt), [N, S], with the total mass of log_p, log p(x0|xt) [N, K]."""
    log_mass = _logsumexp(log_p)
    log_hit = tables.marginal_t[xt]  # log q(xt|x0)
    possible = log_hit > -torch.inf
    says_nothing = ~(possible & (log_p > -torch.inf)).any(-1, keepdim=True)
    log_p = torch.where(says_nothing, 0.0, log_p)
    if weighting == "posterior":
        weight = torch.where(possible, log_p - torch.where(possible, log_hit, 0.0), -torch.inf)
        out = _log_matmul(weight, tables.marginal_s) + tables.step[xt]
        total = _logsumexp(torch.where(possible, log_p, -torch.inf))
    else:
        out = _log_matmul(log_p, tables.marginal_s) + tables.step[xt]
        total = _logsumexp(out)
    # A state that nothing becomes has a total of zero, and stays without a posterior.
    return out + torch.where(total > -torch.inf, log_mass - total, 0.0)


def _logsumexp(x: Tensor) -> Tensor:
    """Sum over the last axis, which is kept. Where all is -inf so is the sum, and its gradient is zero instead of NaN."""
    top = x.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(x.dtype).min)
    return top + _log((x - top).exp().sum(-1, keepdim=True))


def _log(x: Tensor) -> Tensor:
    """Take the logarithm, with a gradient of zero at zero."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), -torch.inf)


def _log_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Compute log sum_k exp(a_nk + b_ks), [N, S], of a [N, K] and b [K, S]: a matrix product wherever that does not underflow."""
    top = a.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(a.dtype).min)
    product = (a - top).exp() @ b.exp()
    out = top + _log(product)
    small = product.detach() < _TINY
    if not bool(small.any()):
        return out
    reached = (a > -torch.inf).to(a.dtype) @ (b > -torch.inf).to(a.dtype) > 0
    rows = (small & reached).any(-1).nonzero()[:, 0]
    step = max(1, _CHUNK_ELEMENTS // b.numel())
    for chunk in torch.split(rows, step) if len(rows) else ():
        exact = _logsumexp((a[chunk, :, None] + b).transpose(1, 2))[..., 0]
        out = out.index_put((chunk,), exact)
    return out


def _over_rows(
    process: CategoricalProcess,
    function: Callable[..., tuple[Tensor, ...]],
    s: Time,
    t: Time,
    *tensors: Tensor,
) -> list[Tensor]:
    """Apply `function(tables, *rows)` to the tokens of `tensors` [B, L, ...]; each of its results is [B, L, ...]."""
    size = tensors[0].shape[:2]
    step = max(1, _CHUNK_ELEMENTS // process.num_states)
    results: list[tuple[Tensor, ...]] = []
    order = []
    for images, s_one, t_one in _times(s, t, size[0], tensors[0].device):
        tables = _tables(process, s_one, t_one, tensors[0].device)
        rows = [x[images].flatten(0, 1) for x in tensors]
        chunks = zip(*(torch.split(x, step) for x in rows), strict=True)
        results.extend(_lightly(function, tables, *chunk) for chunk in chunks)
        order.append(images)
    whole = [torch.cat(parts) for parts in zip(*results, strict=True)]
    joined = [x.view(*size, *x.shape[1:]) for x in whole]
    if len(order) == 1:
        return joined
    back = torch.cat(order).argsort()
    return [x[back] for x in joined]


def _lightly(function: Callable[..., tuple[Tensor, ...]], tables: _Tables, *rows: Tensor) -> tuple[Tensor, ...]:
    """Call a function and keep for a backward pass no more than its arguments."""
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in rows)):
        return function(tables, *rows)
    made: Any = checkpoint(function, tables, *rows, use_reentrant=False, preserve_rng_state=False)
    result: tuple[Tensor, ...] = made
    return result


def _times(s: Time, t: Time, num: int, device: torch.device) -> Iterator[tuple[Any, Time, Time]]:
    """Yield each distinct pair of times with an index of the images that have it."""
    times = [as_float64(x) for x in (s, t)]
    if all(x.ndim == 0 for x in times):
        yield ..., s, t
        return
    both = torch.stack([x.to(device).expand(num) for x in times], 1)
    pairs, which = torch.unique(both, dim=0, return_inverse=True)
    for i, (s_one, t_one) in enumerate(pairs):
        yield (which == i).nonzero()[:, 0], s_one, t_one


def _tables(process: CategoricalProcess, s: Time, t: Time, device: torch.device) -> _Tables:
    classes, states = _all(process.num_classes, device), _all(process.num_states, device)
    return _Tables(
        marginal_s=process.marginal(classes, s)[0],
        marginal_t=process.marginal(classes, t)[0].T.contiguous(),
        step=process.transition(states, s, t)[0].T.contiguous(),
    )


def _all(num: int, device: torch.device) -> Tensor:
    """Build 0..num-1 as the tokens of one image, int64 [1, num]."""
    return torch.arange(num, device=device)[None]
