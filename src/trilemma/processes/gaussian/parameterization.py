"""What a network's output means: one conversion table for noise, data, v, velocity, score and EDM's preconditioning.

Every meaning is a linear one, output = a(t) x0 + b(t) eps. With xt = alpha x0 + sigma eps that is two equations in two
unknowns, so all conversions are one formula.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.categorical.schedules import Time
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like


class Parameterization(ABC):
    """output = a(t) x0 + b(t) eps."""

    @abstractmethod
    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """Compute a(t) and b(t), float64 shaped like t."""

    def scale_in(self, process: GaussianProcess, t: Time) -> Tensor | None:
        """Compute the factor on xt before the network sees it, float64 shaped like t; None for 1."""
        del process, t
        return None

    def target(self, process: GaussianProcess, x0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """Compute the network's target from x0 and eps, [B, ...]."""
        a, b = self.coefficients(process, t)
        return broadcast_like(a, x0) * x0 + broadcast_like(b, x0) * eps

    def to_x0(self, process: GaussianProcess, output: Tensor, xt: Tensor, t: Time) -> Tensor:
        """Convert an output at xt to x0, [B, ...]; t > 0."""
        _, b = self.coefficients(process, t)
        sigma, det = process.sigma(t), self.determinant(process, t)
        return broadcast_like(b / det, xt) * xt - broadcast_like(sigma / det, xt) * output

    def determinant(self, process: GaussianProcess, t: Time) -> Tensor:
        """Compute alpha b - sigma a: an output error e is -sigma / determinant * e in x0; 0 where x0 is undetermined."""
        a, b = self.coefficients(process, t)
        return process.alpha(t) * b - process.sigma(t) * a

    def check(self, process: GaussianProcess) -> None:
        """Refuse a process under which the output does not determine x0 at t = 1.

        Raises:
            UserError: If so.
        """
        if float(self.determinant(process, 1.0)) == 0.0:
            raise UserError(
                f"model/parameterization={type(self).__name__.lower()} says nothing at t = 1, where this schedule leaves only "
                "noise: take v, velocity or x0"
            )


class Eps(Parameterization):
    """Noise prediction (Ho et al. 2020, equation 11)."""

    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """See `Parameterization`."""
        sigma = process.sigma(t)
        return torch.zeros_like(sigma), torch.ones_like(sigma)


class X0(Parameterization):
    """Data prediction."""

    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """See `Parameterization`."""
        sigma = process.sigma(t)
        return torch.ones_like(sigma), torch.zeros_like(sigma)


class V(Parameterization):
    """v = alpha eps - sigma x0 (Salimans and Ho 2022, appendix D)."""

    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """See `Parameterization`."""
        return -process.sigma(t), process.alpha(t)


class Velocity(Parameterization):
    """dx/dt along the path of (x0, eps), alpha' x0 + sigma' eps: flow matching (Lipman et al. 2023, equation 13)."""

    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """See `Parameterization`."""
        return process.schedule.derivatives(t)


class Score(Parameterization):
    """grad log q(xt|x0) = -eps / sigma (Song et al. 2021, section 2.1)."""

    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """See `Parameterization`."""
        sigma = process.sigma(t)
        return torch.zeros_like(sigma), -1.0 / sigma


class EDMPreconditioning(Parameterization):
    """Inputs and targets of unit variance at any noise level (Karras et al. 2022, table 1 and appendix B.6).

    D(x) = c_skip x + c_out F(c_in x), for x / alpha at noise sigma / alpha, so that it serves any process. F is given the
    time t, which is a function of sigma, in the place of log(sigma) / 4.

    Args:
        sigma_data: Standard deviation of the data; 0.5 for CIFAR-10, 0.6162 for MNIST padded to 32 x 32.

    Raises:
        UserError: If it is not positive.
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        if not sigma_data > 0:
            raise UserError(f"parameterization.sigma_data={sigma_data}: must be positive")
        self.sigma_data = sigma_data

    def coefficients(self, process: GaussianProcess, t: Time) -> tuple[Tensor, Tensor]:
        """See `Parameterization`; F = (x0 - c_skip x) / c_out."""
        alpha, sigma = process.alpha(t), process.sigma(t)
        total = self._total(alpha, sigma)
        return sigma / (self.sigma_data * total), -alpha * self.sigma_data / total

    def scale_in(self, process: GaussianProcess, t: Time) -> Tensor:
        """See `Parameterization`; c_in / alpha, 1 over the deviation of xt."""
        return 1.0 / self._total(process.alpha(t), process.sigma(t))

    def _total(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return ((alpha * self.sigma_data).square() + sigma.square()).sqrt()
