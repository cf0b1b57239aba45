"""A process of one symmetric generator: Q_{t|s} = exp((lambda(t) - lambda(s)) R), lambda(t) = strength t^2."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.errors import UserError
from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.processes.categorical.schedules import Time, as_float64


class MatrixProcess(CategoricalProcess):
    """Classes wander among each other at rates R; arbitrary s < t compose, since powers of one matrix commute.

    Args:
        rates: Symmetric rates from class to class, float64 [K, K], at least 0; the diagonal does not count.
        strength: lambda(1), times the mean rate out of a class.
        learned: Whether the rates were measured, so that a checkpoint brings them along.

    Raises:
        UserError: If the strength is not positive.
    """

    generator: Tensor

    def __init__(self, rates: Tensor, strength: float, *, learned: bool) -> None:
        super().__init__()
        if not strength > 0.0:
            raise UserError(f"process.strength={strength} must be positive")
        self.num_classes = self.num_states = len(rates)
        self.strength = strength
        rates = rates.double().clone().fill_diagonal_(0.0)
        rates /= rates.sum(1).mean()
        self.register_buffer("generator", rates - torch.diag(rates.sum(1)), persistent=learned)

    def transition(self, xs: Tensor, s: Time, t: Time) -> Tensor:
        """See `CategoricalProcess`."""
        passed = self.strength * (as_float64(t).square() - as_float64(s).square())
        log_q = _log_exp(passed.to(xs.device).view(-1, 1, 1) * self.generator.double())
        return log_q.expand(len(xs), -1, -1).gather(1, xs[..., None].expand(*xs.shape, self.num_states))

    def marginal(self, x0: Tensor, t: Time) -> Tensor:
        """See `CategoricalProcess`."""
        return self.transition(x0, 0.0, t)


def _log_exp(generators: Tensor) -> Tensor:
    """Log of exp(R), [B, K, K]: the exponential of a matrix without negative entries loses no sign and no small entry."""
    shift = -generators.diagonal(dim1=1, dim2=2).amin(1)[:, None, None]
    eye = torch.eye(generators.shape[1], dtype=generators.dtype, device=generators.device)
    exponential: Tensor = torch.linalg.matrix_exp(generators + shift * eye)
    return exponential.log() - shift


class GreyLevels(MatrixProcess):
    """Levels wander the further the rarer: rates exp(-(i - j)^2 / (2 width^2)), a discretised Gaussian.

    Args:
        num_classes: K grey levels.
        width: Of a jump, in levels.
        strength: See `MatrixProcess`.
    """

    def __init__(self, num_classes: int, *, width: float, strength: float) -> None:
        level = torch.arange(num_classes, dtype=torch.float64)
        super().__init__((-0.5 * ((level[:, None] - level) / width).square()).exp(), strength, learned=False)
