"""Categorical sampling by inverse CDF: exact in the tail, at the cost of one pass over the probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 16
"""Classes per group: short enough for a float32 sum to keep six digits of every class's share."""

_BELOW_ONE = 1.0 - 2.0**-52
"""Keeps a target strictly below its total: the first CDF value above it exists and belongs to a positive class."""

_CACHE_ELEMENTS = 2**19
"""Elements that a CPU's caches hold: larger inputs go through in chunks of rows."""


def inverse_cdf(probs_nk: Tensor, uniform_n: Tensor, *, log: bool = False) -> Tensor:
    """Draw one class a row.

    Classes are summed in groups of 16, the groups are accumulated in float64, one group is chosen, and the CDF inside
    it is formed in float64 again. A class of probability 1e-12 is therefore drawn at its own rate, to a relative 2e-6
    for float32 inputs, whatever else the row holds. A float32 CDF over the whole row rounds it away (its spacing near
    1 is 6e-8), and float32 Gumbel noise cannot exceed 16.6, which does the same.

    Args:
        probs_nk: Non-negative weights, unnormalised, [N, K]; every row has a positive finite sum. Log-weights where
            `log`.
        uniform_n: Float64 in [0, 1), [N].
        log: Whether `probs_nk` holds logarithms.

    Returns:
        Classes int64 [N], each of positive probability.

    Raises:
        RuntimeError: If a row sums to zero, infinity or NaN (on an accelerator: at a later call, since nothing waits
            for the device).
    """
    num_rows, num_classes = probs_nk.shape
    step = num_rows
    if probs_nk.device.type == "cpu":
        step = max(1, _CACHE_ELEMENTS // num_classes)
    if step >= num_rows:
        return _draw(probs_nk.exp() if log else probs_nk, uniform_n)
    out = torch.empty(num_rows, dtype=torch.int64, device=probs_nk.device)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        out[rows] = _draw(probs_nk[rows].exp() if log else probs_nk[rows], uniform_n[rows])
    return out


def _draw(probs_nk: Tensor, uniform_n: Tensor) -> Tensor:
    """Draw for one chunk. Of G groups, g holds the classes g, g + G, g + 2G, ...; the K mod 16 left over are one more group."""
    num_classes = probs_nk.shape[1]
    num_groups = num_classes // GROUP
    grouped = num_groups * GROUP
    # A sum over the middle axis runs along contiguous memory: faster than summing neighbours.
    sums = [probs_nk[:, :grouped].reshape(-1, GROUP, num_groups).sum(1)] if num_groups else []
    if grouped < num_classes:
        sums.append(probs_nk[:, grouped:].sum(1, keepdim=True))
    mass_ng = (torch.cat(sums, 1) if len(sums) > 1 else sums[0]).double()
    cdf_ng = mass_ng.cumsum(1)
    total_n1 = cdf_ng[:, -1:]
    torch._assert_async(
        ((total_n1 > 0) & (total_n1 < torch.inf)).all(), "categorical weights must have a positive finite sum"
    )
    target_n1 = uniform_n[:, None] * (total_n1 * _BELOW_ONE)
    group_n1 = torch.searchsorted(cdf_ng, target_n1, right=True)

    class_nm = group_n1 + torch.arange(0, grouped or 1, num_groups or 1, device=probs_nk.device)
    if grouped < num_classes:
        left_over_m = torch.arange(grouped, grouped + GROUP, device=probs_nk.device)
        class_nm = torch.where(group_n1 < num_groups, class_nm, left_over_m)
        inside_nm = probs_nk.gather(1, class_nm.clamp(max=num_classes - 1)).masked_fill_(class_nm >= num_classes, 0.0)
    else:
        inside_nm = probs_nk.gather(1, class_nm)
    inner_nm = inside_nm.cumsum(1, dtype=torch.float64)
    # Where in the group the target lies, as a share: the group's sum and its float64 CDF round differently.
    above_n1 = (cdf_ng.gather(1, group_n1) - target_n1) / mass_ng.gather(1, group_n1)
    share_n1 = (1.0 - above_n1).clamp_(min=0.0)
    rank_n1 = torch.searchsorted(inner_nm, share_n1 * (inner_nm[:, -1:] * _BELOW_ONE), right=True)
    return class_nm.gather(1, rank_n1).squeeze(1)
