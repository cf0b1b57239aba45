"""Which noise levels a Gaussian model is trained at."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.noise import NoiseSource
from trilemma.training.timesteps import gather_ranks


class TrainingTimes(nn.Module, ABC):
    """Draws times t in (0, 1] and the weights that the loss at each is multiplied by."""

    @abstractmethod
    def sample(self, num: int, noise: NoiseSource, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """Draw `num` times, float64 [num], and their weights, float32 [num]."""

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Take note of the losses [B] at times t [B]; most do not care."""
        del t, loss


class ChainTimes(TrainingTimes):
    """Uniform on the grid i / T, i = 1..T (Ho et al. 2020, algorithm 1).

    Args:
        num_steps: T.
    """

    def __init__(self, num_steps: int = 1000) -> None:
        super().__init__()
        if num_steps < 1:
            raise UserError(f"times.num_steps={num_steps}: must be at least 1")
        self.num_steps = num_steps

    def sample(self, num: int, noise: NoiseSource, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """See `TrainingTimes`."""
        u = noise.uniform((num,), dtype=torch.float64)
        return ((u * self.num_steps).floor() + 1.0) / self.num_steps, torch.ones_like(u, dtype=torch.float32)


class LossSecondMoment(ChainTimes):
    """On the grid i / T in proportion to sqrt(E[L_t^2]), and the weights 1 / (T p) that leave the mean loss as it is.

    E is over the last `history` losses seen at each time; uniform until every time has as many. The history lives in
    buffers, hence in the checkpoint, and holds the losses of all ranks, so that ranks agree.

    Source: Nichol and Dhariwal 2021, section 3.3.

    Args:
        num_steps: T.
        history: Losses remembered at each time.
        uniform_share: Share of the draws that stays uniform.
    """

    losses: Tensor
    counts: Tensor

    def __init__(self, num_steps: int = 1000, *, history: int = 10, uniform_share: float = 1e-3) -> None:
        super().__init__(num_steps)
        if history < 1 or not 0.0 <= uniform_share <= 1.0:
            raise UserError(f"times.history={history} must be at least 1 and uniform_share={uniform_share} in [0, 1]")
        self.history, self.uniform_share = history, uniform_share
        self.register_buffer("losses", torch.zeros(num_steps, history, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """The probabilities of times i / T, i = 1..T, float64 [T]."""
        flat = torch.full_like(self.losses[:, 0], 1.0 / self.num_steps)
        root = self.losses.square().mean(1).sqrt()
        learned = (1.0 - self.uniform_share) * root / root.sum().clamp(min=torch.finfo(root.dtype).tiny)
        return torch.where((self.counts >= self.history).all(), learned + self.uniform_share * flat, flat)

    def sample(self, num: int, noise: NoiseSource, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """See `TrainingTimes`."""
        p = self.probabilities()
        index = noise.categorical(p.expand(num, -1))
        return (index + 1.0).double() / self.num_steps, (1.0 / (self.num_steps * p[index])).float()

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Remember the losses [B] at times t [B], the oldest of a time forgotten first."""
        index, loss = (t * self.num_steps).round().long() - 1, loss.detach().to(self.losses.dtype)
        if dist.is_available() and dist.is_initialized():
            index, loss = gather_ranks(index), gather_ranks(loss)
        # The r-th loss of this batch at a time goes r places behind what was written there before.
        order = torch.argsort(index, stable=True)
        index, loss = index[order], loss[order]
        first = torch.searchsorted(index, index)
        rank = torch.arange(len(index), device=index.device) - first
        # More losses than places, all in one batch: the last ones stay.
        seen = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(index))
        kept = rank >= seen[index] - self.history
        place = (self.counts[index] + rank) % self.history
        self.losses[index[kept], place[kept]] = loss[kept]
        self.counts.add_(seen)


class UniformTimes(TrainingTimes):
    """Uniform in (0, 1], the draws of a batch spread evenly (Kingma et al. 2021, appendix I.1)."""

    def sample(self, num: int, noise: NoiseSource, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """See `TrainingTimes`."""
        # One uniform number an image, each in its own stratum.
        u = noise.uniform((num,), dtype=torch.float64)
        first, total = noise.place(num)
        stratum = first + torch.arange(num, device=u.device, dtype=torch.float64)
        return 1.0 - (stratum + u) / total, torch.ones_like(u, dtype=torch.float32)


class LogNormalTimes(TrainingTimes):
    """log(sigma / alpha) normal (Karras et al. 2022, table 1; with mean 0 and deviation 1 flow matching's logit-normal).

    Source of the latter: Esser et al. 2024, section 3.1.

    Args:
        mean: P_mean.
        std: P_std.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        if not std > 0:
            raise UserError(f"times.std={std}: must be positive")
        self.mean, self.std = mean, std

    def sample(self, num: int, noise: NoiseSource, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        """See `TrainingTimes`."""
        log_ratio = self.mean + self.std * noise.normal((num,), dtype=torch.float64)
        t = process.schedule.time_of_log_snr(-2.0 * log_ratio)
        return t.clamp(process.schedule.min_time, 1.0), torch.ones_like(t, dtype=torch.float32)
