"""The closed-form processes once more as S x S matrices, from the schedule alone: the reference for the tests."""

import torch
from torch import Tensor


def transition_matrix(process, s: float, t: float) -> Tensor:
    """Q[i, j] = q(xt = j | xs = i), float64 [S, S]; s = 0 gives the marginal."""
    K, S = process.num_classes, process.num_states
    alpha = [float(process.schedule.alpha_bar(u)) for u in (s, t)]
    gamma = [float(process.schedule.gamma_bar(u)) for u in (s, t)]
    a = alpha[1] / alpha[0]
    c = 1 - (1 - gamma[1]) / (1 - gamma[0])
    b = (1 - a - c) / K
    Q = torch.zeros(S, S, dtype=torch.float64)
    Q[:K, :K] = a * torch.eye(K, dtype=torch.float64) + b
    if S > K:
        Q[:K, K] = c
        Q[K, K] = 1
    return Q


def true_posterior(process, s: float, t: float) -> Tensor:
    """q(xs | xt, x0) by Bayes, float64 [K (x0), S (xt), S (xs)]; NaN where q(xt | x0) = 0."""
    K = process.num_classes
    Qs, Qt, Qts = (transition_matrix(process, *pair) for pair in ((0.0, s), (0.0, t), (s, t)))
    joint = Qs[:K, None, :] * Qts.T[None]
    return joint / Qt[:K, :, None]


def model_posterior(process, p_x0: Tensor, s: float, t: float, weighting: str) -> Tensor:
    """p(xs | xt) for every xt from one p(x0 | xt) [K], float64 [S (xt), S (xs)]; NaN where undefined."""
    if weighting == "posterior":
        return torch.einsum("k,kts->ts", p_x0, true_posterior(process, s, t))
    K = process.num_classes
    joint = transition_matrix(process, s, t).T * (p_x0 @ transition_matrix(process, 0.0, s)[:K])
    return joint / joint.sum(-1, keepdim=True)
