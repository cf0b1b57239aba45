"""The distribution of times that a diffusion model is trained at.

Shapes: B images, T steps of a chain; times t in (0, 1], those of a chain are i / T with i = 1..T.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

import torch
from torch import Tensor, nn

from trilemma.data.batch import Batch
from trilemma.distributed.gather import gather_ranks
from trilemma.errors import UserError
from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.noise import NoiseSource

Process: TypeAlias = GaussianProcess | CategoricalProcess


class TimestepSampler(nn.Module, ABC):
    """Draws times t in (0, 1] and importance weights that keep the mean of the loss over times."""

    @abstractmethod
    def sample(self, num: int, noise: NoiseSource, process: Process) -> tuple[Tensor, Tensor]:
        """Draw times.

        Args:
            num: How many.
            noise: Source of randomness.
            process: Whose times they are.

        Returns:
            Times, float64 [num], and their weights, float32 [num].
        """

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the losses [B] observed at times t [B]; most samplers ignore them."""
        del t, loss


class GridTimesteps(TimestepSampler):
    """Times on the grid i / T, with a running mean of the loss at each.

    The statistics lie in buffers, hence in the checkpoint, and are computed from the losses of all ranks, so that ranks agree.

    Args:
        num_steps: T.
        decay: Of the running means, per batch that holds a time.

    Raises:
        UserError: If an argument is out of range.
    """

    mean: Tensor
    mean_square: Tensor
    counts: Tensor

    def __init__(self, num_steps: int, *, decay: float = 0.9) -> None:
        super().__init__()
        if num_steps < 1 or not 0.0 <= decay < 1.0:
            raise UserError(f"times.num_steps={num_steps} must be at least 1 and times.decay={decay} in [0, 1)")
        self.num_steps, self.decay = num_steps, decay
        self._first: float | None = None  # time of step 1 of a continuous process
        self.register_buffer("mean", torch.zeros(num_steps, dtype=torch.float64))
        self.register_buffer("mean_square", torch.zeros(num_steps, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.int64))

    def times(self, step: Tensor, process: Process) -> Tensor:
        """Convert steps i = 1..T to the times of the process's grid, float64 [B]; those of a chain are i / T."""
        if isinstance(process, GaussianProcess) and process.num_steps is None and self.num_steps > 1:
            self._first = process.min_time
            return process.grid(step, self.num_steps)
        return step.double() / self.num_steps

    def index(self, t: Tensor) -> Tensor:
        """Convert times of the grid [B] to steps i = 1..T, int64 [B]."""
        if self._first is None:
            return (t.double() * self.num_steps).round().long()
        return (1.0 + (t.double() - self._first) * ((self.num_steps - 1) / (1.0 - self._first))).round().long()

    def mean_loss(self) -> Tensor:
        """Compute the running mean of the loss at times i / T, i = 1..T, float64 [T]; 0 where `counts` is 0."""
        return self.mean.clone()

    @torch.no_grad()
    def update(self, t: Tensor, loss: Tensor) -> None:
        """Record the losses [B] observed at times t [B]; a time that occurs twice in a batch counts with its mean."""
        loss = loss.detach().to(self.mean.dtype)
        index, loss = gather_ranks(torch.stack([self.index(t).to(loss), loss], 1)).unbind(1)
        index = index.long() - 1
        seen = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(index))
        for running, value in ((self.mean, loss), (self.mean_square, loss.square())):
            batch = torch.zeros_like(running).index_add_(0, index, value) / seen.clamp(min=1)
            later = torch.where(self.counts > 0, self.decay * running + (1 - self.decay) * batch, batch)
            running.copy_(torch.where(seen > 0, later, running))
        self.counts.add_(seen)


class ChainTimesteps(GridTimesteps):
    """Uniform on the grid i / T (Ho et al. 2020, algorithm 1).

    Args:
        num_steps: T.
    """

    def __init__(self, num_steps: int = 1000) -> None:
        super().__init__(num_steps)

    def sample(self, num: int, noise: NoiseSource, process: Process) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler`."""
        u = noise.uniform((num,), dtype=torch.float64)
        return self.times((u * self.num_steps).floor() + 1.0, process), torch.ones_like(u, dtype=torch.float32)


class ImportanceTimesteps(GridTimesteps):
    """On the grid i / T in proportion to sqrt(E[L_t^2]), with the weights 1 / (T p) that keep the loss unbiased.

    Uniform until each time has been seen more than `min_count` times.

    Source: Nichol and Dhariwal 2021, equation 18. The paper averages the last ten squared losses of each time; here the mean
    is a running one of the same horizon, 1 / (1 - decay) = 10, as in Hoogeboom et al. 2021 and Gu et al. 2022.

    Args:
        num_steps: T.
        decay: Of the running means, per batch that holds a time.
        min_count: Observations of each time before importance sampling begins.
        uniform_share: Share of the draws that stays uniform, which bounds the weights by 1 / uniform_share.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, num_steps: int, *, decay: float = 0.9, min_count: int = 10, uniform_share: float = 1e-3) -> None:
        super().__init__(num_steps, decay=decay)
        if min_count < 0 or not 0.0 <= uniform_share <= 1.0:
            raise UserError(
                f"times.min_count={min_count} must not be negative and times.uniform_share={uniform_share} lie in [0, 1]"
            )
        self.min_count, self.uniform_share = min_count, uniform_share

    def probabilities(self) -> Tensor:
        """Compute p(i) of times i / T, i = 1..T, float64 [T]."""
        flat = torch.full_like(self.mean_square, 1.0 / self.num_steps)
        root = self.mean_square.sqrt()
        total = root.sum()
        learned = (1.0 - self.uniform_share) * root / total + self.uniform_share * flat
        # Where all losses are zero, times are uniform.
        return torch.where((self.counts.min() > self.min_count) & (total != 0), learned, flat)

    def sample(self, num: int, noise: NoiseSource, process: Process) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler`."""
        p = self.probabilities()
        index = noise.categorical(p.expand(num, -1))
        return self.times(index + 1, process), (1.0 / (self.num_steps * p[index])).float()


class UniformTimesteps(TimestepSampler):
    """Uniform between a process's least noisy time and 1, stratified over a batch (Kingma et al. 2021, appendix I.1)."""

    def sample(self, num: int, noise: NoiseSource, process: Process) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler`."""
        # One uniform number an image, each in its own stratum.
        u = noise.uniform((num,), dtype=torch.float64)
        first, total = noise.place(num)
        stratum = first + torch.arange(num, device=u.device, dtype=torch.float64)
        first_time = process.min_time if isinstance(process, GaussianProcess) else 0.0
        return 1.0 - (1.0 - first_time) * (stratum + u) / total, torch.ones_like(u, dtype=torch.float32)


class LogNormalTimesteps(TimestepSampler):
    """log(sigma / alpha) normal (Karras et al. 2022, table 1; with mean 0 and deviation 1 flow matching's logit-normal).

    Source of the latter: Esser et al. 2024, section 3.1.

    Args:
        mean: P_mean.
        std: P_std.

    Raises:
        UserError: If `std` is not positive, or a process is not Gaussian.
    """

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        super().__init__()
        if not std > 0:
            raise UserError(f"times.std={std}: must be positive")
        self.mean, self.std = mean, std

    def sample(self, num: int, noise: NoiseSource, process: Process) -> tuple[Tensor, Tensor]:
        """See `TimestepSampler`."""
        if not isinstance(process, GaussianProcess):
            raise UserError("log-normal noise levels need a Gaussian process: take model/times=chain or importance")
        log_ratio = self.mean + self.std * noise.normal((num,), dtype=torch.float64)
        t = process.schedule.time_of_log_snr(-2.0 * log_ratio)
        return t.clamp(process.min_time, 1.0), torch.ones_like(t, dtype=torch.float32)


def stratified_timesteps(batch: Batch, batch_idx: int, num_steps: int) -> Tensor:
    """Stratify the steps of a chain over a data set: consecutive images far apart, and any T of them one of each.

    Args:
        batch: With the images' rows in their set; without, batches are taken to be of one size and one process's.
        batch_idx: Number of the batch.
        num_steps: Length T of the chain.

    Returns:
        Steps i in 1..T, int64 [B].
    """
    index = batch["index"]
    row = batch["row"] if "row" in batch else batch_idx * len(index) + torch.arange(len(index), device=index.device)
    return row * coprime_stride(num_steps) % num_steps + 1


def coprime_stride(num_steps: int) -> int:
    """Choose a stride near the golden section of T and coprime to it: consecutive images are far apart, T of them cover 1..T."""
    stride = max(1, round(num_steps * 0.618))
    while math.gcd(stride, num_steps) != 1:
        stride += 1
    return stride
