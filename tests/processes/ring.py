"""A process that is one matrix: all but its two distributions comes from the base class."""

import torch

from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.processes.categorical.schedules import as_float64


class Ring(CategoricalProcess):
    """Classes that wander to their neighbours on a ring: Q = exp(lambda R), R the discrete Laplacian."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = self.num_states = num_classes
        eye = torch.eye(num_classes, dtype=torch.float64)
        self.register_buffer("generator", eye.roll(1, 1) + eye.roll(-1, 1) - 2 * eye, persistent=False)

    def transition(self, xs, s, t):
        passed = 3 * (as_float64(t) - as_float64(s)).view(-1, 1, 1)
        log_q = torch.linalg.matrix_exp(passed * self.generator).clamp(min=0).log()
        return log_q.expand(len(xs), -1, -1).gather(1, xs[..., None].expand(*xs.shape, self.num_states))

    def marginal(self, x0, t):
        return self.transition(x0, 0.0, t)
