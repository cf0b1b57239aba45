"""Batch normalisation over the whole batch, however many processes share it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with mean and variance over all processes, whose parts of the batch are equal; on any device.

    Torch's own `SyncBatchNorm` needs a GPU. Alone, and outside training, it is `nn.BatchNorm2d`.

    Source: Ioffe and Szegedy 2015, "Batch normalization".
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, h, w]."""
        if not (self.training and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            normalised: Tensor = super().forward(x)
            return normalised
        num_processes = dist.get_world_size()
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean = _sum_over_processes(wide.mean((0, 2, 3))) / num_processes
        centred = wide - mean[:, None, None]
        variance = _sum_over_processes(centred.square().mean((0, 2, 3))) / num_processes
        self._remember(mean.detach(), variance.detach(), num_processes * x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process's loss depends on this process's x. Applied and not called: a penalty on a slope differentiates this too.
        return _sum_over_processes(gradients[0])


def _sum_over_processes(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total
