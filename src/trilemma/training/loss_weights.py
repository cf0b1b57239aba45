"""How much the squared error of a network's output counts at each noise level."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.gaussian.parameterization import Parameterization
from trilemma.processes.gaussian.process import GaussianProcess


class LossWeight(ABC):
    """A weight on the squared error of the network's output."""

    @abstractmethod
    def __call__(self, process: GaussianProcess, parameterization: Parameterization, t: Tensor) -> Tensor | None:
        """The weights at times t [B], float64 [B]; None where all are 1."""


class Simple(LossWeight):
    """The plain squared error of the output (Ho et al. 2020, equation 14); EDM's weight under its preconditioning."""

    def __call__(self, process: GaussianProcess, parameterization: Parameterization, t: Tensor) -> None:
        """See `LossWeight`."""


class _OfX0(LossWeight):
    """A weight on the squared error of x0, brought to that of the output."""

    def __init__(self, gamma: float = 5.0) -> None:
        if not gamma > 0:
            raise UserError(f"weight.gamma={gamma}: must be positive")
        self.gamma = gamma

    @abstractmethod
    def of_x0(self, snr: Tensor) -> Tensor:
        """The weight of the squared error of x0 at a signal-to-noise ratio."""

    def __call__(self, process: GaussianProcess, parameterization: Parameterization, t: Tensor) -> Tensor:
        """See `LossWeight`."""
        ratio = process.sigma(t) / parameterization.determinant(process, t)
        return self.of_x0(torch.exp(process.log_snr(t))) * ratio.square()


class MinSNR(_OfX0):
    """min(SNR, gamma) on the squared error of x0 (Hang et al. 2023, equation 8).

    Args:
        gamma: Where the weight stops rising.
    """

    def of_x0(self, snr: Tensor) -> Tensor:
        """See `_OfX0`."""
        return snr.clamp(max=self.gamma)


class SoftMinSNR(_OfX0):
    """SNR gamma / (SNR + gamma) on the squared error of x0 (Crowson et al. 2024, equation 12).

    Args:
        gamma: Where the weight stops rising; 1 / sigma_data^2 makes it that of k-diffusion.
    """

    def of_x0(self, snr: Tensor) -> Tensor:
        """See `_OfX0`."""
        return self.gamma / (1.0 + self.gamma / snr)
