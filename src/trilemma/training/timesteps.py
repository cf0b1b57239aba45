"""Which timestep a training example sees."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trilemma.data.batch import Batch
from trilemma.processes.noise import NoiseSource


class ImportanceTimesteps(nn.Module):
    """Timesteps drawn in proportion to sqrt(E[L_t^2]) and the weights that keep the loss unbiased.

    Uniform until each timestep has been seen `min_count` times. The history lives in buffers, hence in the checkpoint, and is
    computed from the losses of all ranks, so that ranks agree.

    Source: Nichol and Dhariwal 2021, eq. 18; as a running mean in Tang et al. 2022 and Hoogeboom et al. 2021.

    Args:
        num_timesteps: Length T of the chain.
        decay: Of the running mean of the squared loss.
        min_count: Observations of each timestep before importance sampling begins.
        uniform: Always draw uniformly (the history is still kept).
    """

    square: Tensor
    count: Tensor

    def __init__(self, num_timesteps: int, *, decay: float = 0.9, min_count: int = 10, uniform: bool = False) -> None:
        super().__init__()
        self.num_timesteps, self.decay, self.min_count, self.uniform = num_timesteps, decay, min_count, uniform
        self.register_buffer("square", torch.zeros(num_timesteps, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(num_timesteps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """p(i) of timesteps i = 1..T at position i - 1, float64 [T]."""
        flat = torch.full_like(self.square, 1 / self.num_timesteps)
        weight = (self.square + 1e-10).sqrt() + 1e-4
        learned = weight / weight.sum()
        ready = (self.count.min() > self.min_count) & (not self.uniform)
        return torch.where(ready, learned, flat)

    def sample(self, num: int, noise: NoiseSource) -> tuple[Tensor, Tensor]:
        """Draw timesteps.

        Args:
            num: How many, B.
            noise: Source of randomness.

        Returns:
            Timesteps i in 1..T, int64 [B], and weights 1 / (T p(i)), float32 [B], whose mean is 1.
        """
        p = self.probabilities()
        index = noise.categorical(p.expand(num, -1))
        return index + 1, (1 / (self.num_timesteps * p[index])).float()

    @torch.no_grad()
    def update(self, timesteps: Tensor, loss: Tensor) -> None:
        """Record the losses [B] observed at `timesteps` [B]; a timestep seen twice counts with its mean square."""
        index, square = timesteps - 1, loss.detach().to(self.square.dtype).square()
        if dist.is_available() and dist.is_initialized():
            index, square = gather_ranks(index), gather_ranks(square)
        total = torch.zeros_like(self.square).index_add_(0, index, square)
        seen = torch.zeros_like(self.count).index_add_(0, index, torch.ones_like(index))
        mean = total / seen.clamp(min=1)
        running = torch.where(self.count > 0, self.decay * self.square + (1 - self.decay) * mean, mean)
        self.square.copy_(torch.where(seen > 0, running, self.square))
        self.count.add_(seen)


def gather_ranks(x: Tensor) -> Tensor:
    """The tensors [n, ...] of all ranks, one after another; all have the same shape."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def strata(batch: Batch, batch_idx: int, num_timesteps: int) -> Tensor:
    """Timesteps i in 1..T, int64 [B]: consecutive images of a set far apart, and any T of them one of each.

    Args:
        batch: With the images' rows in their set; without, batches are taken to be of one size and one process's.
        batch_idx: Number of the batch.
        num_timesteps: Length T of the chain.
    """
    index = batch["index"]
    row = batch["row"] if "row" in batch else batch_idx * len(index) + torch.arange(len(index), device=index.device)
    return row * coprime_stride(num_timesteps) % num_timesteps + 1


def coprime_stride(num_timesteps: int) -> int:
    """A stride near the golden section of T and coprime to it: consecutive images land far apart, and T of them cover 1..T."""
    stride = max(1, round(num_timesteps * 0.618))
    while math.gcd(stride, num_timesteps) != 1:
        stride += 1
    return stride
