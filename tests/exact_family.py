"""A diffusion family whose network is exact: its data are Gaussian, of one mean a label."""

import torch
from torch import nn

from trilemma.codecs.pixels import Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.models.ddpm import DDPM
from trilemma.processes.gaussian.parameterization import X0
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.gaussian.schedules import LinearPath
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.guidance import Guidance
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import UniformTimesteps

MEANS = (-0.5, 0.0, 0.5)
STD = 0.1


class ExactNetwork(nn.Module):
    """E[x0 | xt] of x0 ~ N(mean of the label, STD^2)."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.unit = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x, t, pooled, context, mask):
        mean = 0.0 if pooled is None else pooled.view(-1, 1, 1, 1)
        alpha, sigma = broadcast_like(self.process.alpha(t), x), broadcast_like(self.process.sigma(t), x)
        gain = alpha * STD**2 / (alpha.square() * STD**2 + sigma.square())
        return self.unit * (mean + gain * (x - alpha * mean))


def exact_family(*, labels=False, schedule=None, sampler=None, shape=(1, 4, 4), optimizer=None):
    process = GaussianProcess(schedule or LinearPath())
    condition = NoCondition()
    if labels:
        condition = LabelCondition(len(MEANS), 1)
        condition.embedding.weight = nn.Parameter(torch.tensor([*MEANS, 0.0], dtype=torch.float64)[:, None])
    return DDPM(
        codec=Pixels(shape),
        process=process,
        network=ExactNetwork(process),
        condition=condition,
        sampler=sampler or DDIM(20),
        guidance=Guidance(),
        parameterization=X0(),
        times=UniformTimesteps(),
        weight=Simple(),
        optimizer=optimizer,
    ).eval()
