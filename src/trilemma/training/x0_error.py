"""Running mean of the error of x0 by noise level: the posterior variance that an optimal reverse variance needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trilemma.distributed.gather import gather_ranks
from trilemma.processes.gaussian.process import GaussianProcess


class X0Error(nn.Module):
    """A running mean of the squared error of x0, by time.

    The squared error of the mean of x0 given xt is, on average, the variance of x0 given xt: what Bao et al. 2022
    (Analytic-DPM, theorem 1) estimate for a network that is fixed is here kept while it is trained. It is stored in units
    of sigma^2 / (alpha^2 + sigma^2), which keeps it near 1 at both ends.

    Args:
        num_bins: Equal parts of (0, 1]; between their middles the error is interpolated.
        decay: Of the mean, per observation of a part.
    """

    mean: Tensor

    def __init__(self, num_bins: int = 100, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.ones(num_bins, dtype=torch.float64))

    def variance(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Look up the mean variance per dimension of x0 given xt at times t [B], float64 [B]."""
        position = (t.double() * len(self.mean) - 0.5).clamp(0, len(self.mean) - 1)
        left = position.floor().long()
        right = (left + 1).clamp(max=len(self.mean) - 1)
        return torch.lerp(self.mean[left], self.mean[right], position - left) * self._unit(process, t)

    @torch.no_grad()
    def update(self, process: GaussianProcess, t: Tensor, squared_error: Tensor) -> None:
        """Record squared errors of x0, each a mean over dimensions, [B], at times t [B]."""
        value = (squared_error.detach().double() / self._unit(process, t)).to(self.mean.dtype)
        part = (t.double() * len(self.mean) - 1e-6).floor().long().clamp(0, len(self.mean) - 1)
        value, part = gather_ranks(value), gather_ranks(part)
        count = torch.zeros_like(self.mean).index_add_(0, part, torch.ones_like(value))
        total = torch.zeros_like(self.mean).index_add_(0, part, value)
        self.mean.copy_(torch.lerp(total / count.clamp(min=1), self.mean, self.decay**count))

    @staticmethod
    def _unit(process: GaussianProcess, t: Tensor) -> Tensor:
        var = process.sigma(t).square()
        return var / (process.alpha(t).square() + var)
