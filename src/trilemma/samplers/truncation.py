"""Top-r truncation: sample only from the most probable classes that together hold a mass r."""

from __future__ import annotations

import torch
from torch import Tensor

_HEAD = 32
"""Classes looked at before a full sort; a trained network's p(x0) mostly has its mass there."""


def truncate(log_p: Tensor, mass: float) -> Tensor:
    """Keep a class while the classes ranked above it hold less than `mass`, so always the first; renormalise.

    As VQ-Diffusion's truncation sampling (Gu et al. 2022, section 5.1) and nucleus sampling (Holtzman et al. 2020);
    classes of equal probability are kept or dropped together.

    Args:
        log_p: Normalised log-probabilities [..., K].
        mass: r in (0, 1]; 1 returns `log_p` itself.

    Returns:
        Normalised log-probabilities [..., K], -inf where dropped.
    """
    if mass >= 1.0:
        return log_p
    rows = log_p.flatten(0, -2)
    if rows.device.type == "cpu":
        threshold = _head(rows, mass)
    else:
        threshold, _ = _cut(rows.sort(-1, descending=True).values, mass)
    return rows.masked_fill(rows < threshold, -torch.inf).log_softmax(-1).view(log_p.shape)


def _head(rows: Tensor, mass: float) -> Tensor:
    """On a CPU a sort costs ten times a top-k, so only rows whose first classes do not hold the mass are sorted."""
    head = min(_HEAD, rows.shape[-1])
    threshold, covered = _cut(rows.topk(head, -1).values, mass)
    left = (~covered).nonzero().squeeze(-1)
    if len(left) and head < rows.shape[-1]:
        threshold[left], _ = _cut(rows[left].sort(-1, descending=True).values, mass)
    return threshold


def _cut(ranked: Tensor, mass: float) -> tuple[Tensor, Tensor]:
    """Of rows in descending order, the smallest kept log-probability [N, 1] and whether the mass was reached [N]."""
    cumulative = ranked.exp().cumsum(-1, dtype=torch.float64)
    last = (cumulative[:, :-1] < mass).sum(-1, keepdim=True)
    return ranked.gather(-1, last), cumulative[:, -1] >= mass
