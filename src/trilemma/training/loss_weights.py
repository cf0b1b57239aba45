"""Weights of a diffusion model's loss by noise level.

Shapes: B images, times t and log signal-to-noise ratios [B].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.categorical.schedules import Time
from trilemma.processes.gaussian.parameterization import Parameterization
from trilemma.processes.gaussian.process import GaussianProcess


@runtime_checkable
class KnowsSNR(Protocol):
    """A process with a signal-to-noise ratio."""

    def log_snr(self, t: Time) -> Tensor:
        """Compute the log of the signal-to-noise ratio at t, float64 shaped like t."""
        ...


class LossWeight(ABC):
    """A weight on the squared error of a Gaussian model's output, or on the terms of a categorical model's bound."""

    @abstractmethod
    def __call__(self, process: GaussianProcess, parameterization: Parameterization, t: Tensor) -> Tensor | None:
        """Weigh the squared error of the network's output.

        Args:
            process: The corruption.
            parameterization: What the network's output means.
            t: Times [B].

        Returns:
            Weights, float64 [B]; None where all are 1.
        """

    @abstractmethod
    def on_bound(self, log_snr: Tensor) -> Tensor | None:
        """Weigh the terms of the variational bound of a categorical process.

        Args:
            log_snr: log(alpha_bar / (1 - alpha_bar)) [B].

        Returns:
            Weights relative to the bound, in the dtype of `log_snr`, [B]; None where all are 1.
        """


class Simple(LossWeight):
    """The plain squared error of the output (Ho et al. 2020, equation 14); EDM's weight under its preconditioning."""

    def __call__(self, process: GaussianProcess, parameterization: Parameterization, t: Tensor) -> None:
        """See `LossWeight`."""

    def on_bound(self, log_snr: Tensor) -> None:
        """See `LossWeight`: the bound itself."""


class _OfX0(LossWeight):
    """A weight on the squared error of x0, converted to one on the error of the output."""

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise UserError(f"weight.gamma={gamma}: must be positive")
        self.gamma = gamma

    @abstractmethod
    def of_x0(self, snr: Tensor) -> Tensor:
        """Compute the weight of the squared error of x0 at a signal-to-noise ratio."""

    def __call__(self, process: GaussianProcess, parameterization: Parameterization, t: Tensor) -> Tensor:
        """See `LossWeight`."""
        ratio = process.sigma(t) / parameterization.determinant(process, t)
        return self.of_x0(torch.exp(process.log_snr(t))) * ratio.square()


class MinSNR(_OfX0):
    """min(SNR, gamma) on the squared error of x0 (Hang et al. 2023, equation 8).

    On a bound, min(1, gamma / SNR): the same clamp relative to the weight SNR, which is that of the squared error of eps.

    Args:
        gamma: Where the weight stops rising.
    """

    def of_x0(self, snr: Tensor) -> Tensor:
        """See `_OfX0`."""
        return snr.clamp(max=self.gamma)

    def on_bound(self, log_snr: Tensor) -> Tensor:
        """See `LossWeight`."""
        return (self.gamma * torch.exp(-log_snr)).clamp(max=1.0)


class SoftMinSNR(_OfX0):
    """SNR gamma / (SNR + gamma) on the squared error of x0 (Crowson et al. 2024, equation 12).

    On a bound, gamma / (SNR + gamma): the same relative to the weight SNR.

    Args:
        gamma: Where the weight stops rising; 1 / sigma_data^2 makes it that of k-diffusion.
    """

    def of_x0(self, snr: Tensor) -> Tensor:
        """See `_OfX0`."""
        return self.gamma / (1.0 + self.gamma / snr)

    def on_bound(self, log_snr: Tensor) -> Tensor:
        """See `LossWeight`."""
        return torch.sigmoid(math.log(self.gamma) - log_snr)
