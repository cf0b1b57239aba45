"""One term of the variational bound in closed form: KL(q(xs|xt,x0) || p(xs|xt)) in a few passes over the logits.

The true posterior is constant but for the entries x0, xt and the mask, and the model's is log p(xs = k|xt) =
log(kappa p_k + q) + constant but for xt and the mask, p = softmax(logits). So the KL is S = sum_k log(kappa p_k + q)
and a few gathered entries, all of them numbers per token, kept in float64; the [B, L, K] work is a softmax and that
sum, and their gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trilemma.processes.categorical.base import BoundTerms, Weighting
from trilemma.processes.categorical.coefficients import Coefficients, positive

_CACHE_ELEMENTS = 2**18
"""Elements whose temporaries fit a CPU's caches; larger inputs go through in chunks of rows."""


def closed_form_bound(
    logits: Tensor, x0: Tensor, xt: Tensor, known: Tensor, c: Coefficients, weighting: Weighting
) -> BoundTerms:
    """Compute the KL and the cross-entropy of x0, each [B, L], differentiable in `logits`.

    Args:
        logits: Unnormalised log p(x0|xt), [B, L, K].
        x0: Clean tokens int64 [B, L].
        xt: State at t int64 [B, L].
        known: Where xt is a class, bool [B, L].
        c: Coefficients at s and t.
        weighting: See `Weighting`.
    """
    posterior = weighting == "posterior"
    same = known & (xt == x0)
    other = known & ~same
    hit_t = positive(c.alpha_t + c.replaced_t)
    # beta = q(xt|x0 != xt) / q(xt|x0 = xt), tiny where little is replaced; any number where nothing ever is.
    beta = torch.where(c.replaced_t > 0, c.replaced_t / hit_t, 1.0)
    replaces = c.replaced_s > 0
    kappa = torch.where(replaces, c.alpha_s / positive(c.replaced_s), 0.0).to(xt.device).expand(xt.shape)
    # "posterior" divides by q(xt|x0): q = beta + (1 - beta) (1 - p_xt), in units of 1 / b_bar(t).
    divides = known & replaces if posterior else torch.zeros_like(known)
    offset = torch.where(divides, beta, 1.0)
    slope = torch.where(divides, c.alpha_t / hit_t, 0.0)
    held = torch.where(known, xt, x0)
    log_p0, log_pt, rest, total_log = _SoftmaxSums.apply(  # type: ignore[no-untyped-call]
        logits.flatten(0, -2), x0, held, kappa, offset, slope
    )

    log_b = torch.where(replaces, positive(c.replaced_s).log(), 0.0)
    log_q = (offset + slope * rest).log() + c.replaced_s.log()
    log_alpha = c.alpha_s.log()
    term_0 = torch.logaddexp(log_alpha + log_p0, log_q)
    term_t = torch.logaddexp(log_alpha + log_pt, log_q)
    # p(xs = xt|xt): "posterior" divides the class xt by q(xt|x0 = xt), so its p counts beta times.
    held_t = torch.logaddexp(log_alpha + log_pt + beta.log(), log_q) if posterior else term_t

    # True posterior over the weights: (alpha_s + b_s) at x0, b_s elsewhere, times `at_0`, `at_t`, `elsewhere`.
    hit_s = c.alpha_s + c.replaced_s
    jump = c.replace / positive(c.replaced_t)
    masked = c.reveal / positive(c.unmasked_s)
    at_0 = torch.where(same, (c.keep + c.replace) / hit_t, torch.where(known, jump, masked))
    at_t = torch.where(other, (c.keep + c.replace) / positive(c.replaced_t), 0.0)
    elsewhere = torch.where(same, c.replace / hit_t, torch.where(known, jump, masked))
    others = total_log - (term_0 - log_b) - torch.where(other, term_t - log_b, 0.0)
    kl = (
        at_0 * hit_s * (hit_s.log() - torch.where(same, held_t, term_0))
        + at_t * c.replaced_s * (log_b - held_t)
        - elsewhere * c.replaced_s * others
    )
    if posterior:
        kl = kl + torch.where(same, beta.log(), 0.0)
    else:
        evidence = torch.logaddexp(c.alpha_t.log() + log_pt, positive(c.replaced_t).log())
        truth = torch.where(same, hit_t, positive(c.replaced_t)).log()
        kl = kl + torch.where(known, evidence - truth, 0.0)
    # Where nothing is ever replaced a known token stays under both distributions.
    kl = torch.where(known & (c.replaced_t == 0), 0.0, kl)
    dtype = _accumulator(logits)
    return BoundTerms(kl.to(dtype), -log_p0.to(dtype))


class _SoftmaxSums(torch.autograd.Function):
    """Reduces the softmax p of the logits [N, K] to the four numbers a token that the bound consists of, float64.

    log p_i, log p_j, 1 - p_j (summed without j, so exact where p_j is near one), and sum_k log(kappa p_k + q) with
    q = offset + slope (1 - p_j); i = x0, j = the held class. Nothing of size [N, K] is kept for the backward pass but
    the logits.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        logits: Tensor,
        x0: Tensor,
        held: Tensor,
        kappa: Tensor,
        offset: Tensor,
        slope: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        per_token = torch.stack([kappa, offset, slope], -1).flatten(0, -2)
        index = torch.stack([x0, held], -1).flatten(0, -2)
        dtype = _accumulator(logits)
        sums = torch.empty(len(logits), 6, dtype=torch.float64, device=logits.device)
        for rows in _chunks(logits):
            x = logits[rows].to(dtype)
            at = x.gather(1, index[rows])
            top = x.amax(1, keepdim=True)
            e = (x - top).exp_()
            e_j = e.gather(1, index[rows, 1:])
            rest = e.scatter_(1, index[rows, 1:], 0.0).sum(1, keepdim=True).double()
            e.scatter_(1, index[rows, 1:], e_j)
            total = rest + e_j
            log_z = top + total.log()
            scale = per_token[rows, :1] / total
            q = per_token[rows, 1:2] + per_token[rows, 2:] * rest / total
            total_log = e.mul_(scale.to(dtype)).add_(q.to(dtype)).log_().sum(1, keepdim=True)
            sums[rows] = torch.cat([at - log_z, rest / total, total_log, log_z, q], 1)
        ctx.save_for_backward(logits, index, per_token, sums)
        log_p0, log_pt, rest, total_log = (sums[:, k].clone().view(x0.shape) for k in range(4))
        return log_p0, log_pt, rest, total_log

    @staticmethod
    @once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, index, per_token, sums = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_0, grad_t, grad_rest, grad_sum = torch.stack([g.double() for g in grads], -1).flatten(0, -2).chunk(4, 1)
        dtype = _accumulator(logits)
        out = torch.empty_like(logits)
        for rows in _chunks(logits):
            kappa, slope = per_token[rows, :1], per_token[rows, 2:]
            log_pt, log_z, q = sums[rows, 1:2], sums[rows, 4:5], sums[rows, 5:]
            p = (logits[rows].to(dtype) - log_z.to(dtype)).exp_()
            inverse = (p * kappa.to(dtype)).add_(q.to(dtype)).reciprocal_()
            inverse_sum = inverse.sum(1, keepdim=True).double()
            g_sum = grad_sum[rows]
            # d/dlogits = h - p sum(h), h_k = p_k d/dp_k; kappa p_k / (kappa p_k + q) = 1 - q / (kappa p_k + q).
            at_j = grad_t[rows] - log_pt.exp() * (grad_rest[rows] + slope * g_sum * inverse_sum)
            h_sum = g_sum * (logits.shape[1] - q * inverse_sum) + grad_0[rows] + at_j
            grad = inverse.mul_((-g_sum * q).to(dtype)).add_(g_sum.to(dtype)).sub_(p.mul_(h_sum.to(dtype)))
            grad.scatter_add_(1, index[rows], torch.cat([grad_0[rows], at_j], 1).to(dtype))
            out[rows] = grad
        return out, None, None, None, None, None


def _chunks(logits: Tensor) -> list[slice]:
    """Split the rows into chunks."""
    num_rows, num_classes = logits.shape
    step = max(1, _CACHE_ELEMENTS // num_classes) if logits.device.type == "cpu" else max(1, num_rows)
    return [slice(start, start + step) for start in range(0, num_rows, step)]


def _accumulator(logits: Tensor) -> torch.dtype:
    """Choose the dtype in which sums over classes are accumulated."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
