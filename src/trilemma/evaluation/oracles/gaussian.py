"""The samplers of Gaussian processes, with the exact score of a Gaussian and of a mixture of two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor

from trilemma.conditions.base import Condition
from trilemma.evaluation.oracles.base import Check, Oracle, Z, mean_check
from trilemma.evaluation.oracles.exact import ExactClassifier, GaussianDenoiser, MixtureDenoiser
from trilemma.evaluation.oracles.recursions import (
    X0,
    Ladder,
    ancestral_moments,
    chain,
    ddim_map,
    ddim_moments,
    dpm_solver_map,
    expectation,
    gaussian_x0,
    heun_map,
    karras,
    moments_of_map,
    straight,
    two_gaussians_x0,
)
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Denoiser
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.base import GaussianSampler
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import ClassifierFree, Guidance

MEAN, STD = 0.3, 0.5
GAP, WIDTH, UPPER_SHARE = 1.0, 0.3, 0.3
QUADRATURE = 1e-3  # of a share: one cell of the midpoint rule is in doubt
SCALE = 2.5

CHAIN, NOISE, FLOW = GaussianProcess(LinearBeta()), GaussianProcess(EDM()), GaussianProcess(LinearPath())


@dataclass(frozen=True)
class _Trajectory:
    """A deterministic sampler, and the map it should be."""

    name: str
    process: GaussianProcess
    sampler: GaussianSampler
    ladder: Ladder
    map: Callable[[Tensor, Ladder, X0], Tensor]


def _trajectories() -> list[_Trajectory]:
    noise_heun, flow_heun = partial(heun_map, flow=False), partial(heun_map, flow=True)
    return [
        _Trajectory("DDIM, 10 steps", CHAIN, DDIM(10), chain(10), ddim_map),
        _Trajectory("DDIM, 50 steps", CHAIN, DDIM(50), chain(50), ddim_map),
        _Trajectory("DPM-Solver++, 10 steps", CHAIN, DPMSolver(10), chain(10), dpm_solver_map),
        _Trajectory("DPM-Solver++ on a flow, 10 steps", FLOW, DPMSolver(10), straight(10), dpm_solver_map),
        _Trajectory("EDM's Heun, 18 steps", NOISE, Heun(18), karras(18), noise_heun),
        _Trajectory("EDM's Euler, 18 steps", NOISE, Heun(18, order=1), karras(18), ddim_map),
        _Trajectory("a flow's Heun, 10 steps", FLOW, Heun(10), straight(10), flow_heun),
        _Trajectory("a flow's Euler, 10 steps", FLOW, Heun(10, order=1), straight(10), ddim_map),
    ]


class GaussianSampling(Oracle):
    """Every sampler, drawn from through the guidance and noise of any model, against its own recursion in closed form.

    With the exact score no sampler returns the data's distribution at a finite number of steps. On a Gaussian what it returns is known
    to all digits (every step is affine), and on two Gaussians side by side to quadrature in one dimension.

    Args:
        num: Draws of each case.

    Raises:
        ValueError: If there are too few for a check to say anything.
    """

    def __init__(self, *, num: int = 20_000) -> None:
        if num < 1000:
            raise ValueError(f"num={num}: need at least 1000 draws")
        self.num = num

    def run(self, seed: int) -> list[Check]:
        """All checks, a few seconds for the default size."""
        seeds = count(seed * 1000)
        return [*self._gaussian(seeds), *self._mixture(seeds), *self._shares_of_a_random_walk(seeds)]

    def _draw(
        self,
        denoiser: Denoiser,
        process: GaussianProcess,
        sampler: GaussianSampler,
        dim: int,
        seeds: Iterator[int],
        *,
        condition: Condition | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """Draws float64 [num, dim]."""
        return sampler(
            denoiser,
            process,
            (self.num, dim, 1, 1),
            condition=condition or Condition(self.num),
            guidance=guidance or Guidance(),
            noise=Noise(next(seeds), torch.arange(self.num)),
        ).flatten(1)

    def _moments(self, name: str, known: tuple[float, float], x: Tensor) -> Iterator[Check]:
        """Mean and deviation of normal draws [num]."""
        mean, std = known
        yield Check(f"mean of {name}", mean, float(x.mean()), Z * std / self.num**0.5)
        yield Check(f"deviation of {name}", std, float(x.std()), Z * std / (2 * self.num) ** 0.5)

    def _gaussian(self, seeds: Iterator[int]) -> Iterator[Check]:
        for trajectory in _trajectories():
            known = moments_of_map(
                lambda x, w=trajectory: w.map(x, w.ladder, gaussian_x0(MEAN, STD)),  # type: ignore[misc]
                trajectory.ladder.prior_std,
            )
            x = self._draw(
                GaussianDenoiser(trajectory.process, MEAN, STD), trajectory.process, trajectory.sampler, 1, seeds
            )
            yield from self._moments(trajectory.name, known, x[:, 0])
        denoiser = GaussianDenoiser(CHAIN, MEAN, STD)
        for num_steps in (10, 50):
            ladder = chain(num_steps)
            for eta in (0.5, 1.0):
                x = self._draw(denoiser, CHAIN, DDIM(num_steps, eta=eta), 1, seeds)
                known = ddim_moments(ladder, MEAN, STD, eta)
                yield from self._moments(f"DDIM, eta {eta}, {num_steps} steps", known, x[:, 0])
            for variance in ("small", "large", "optimal"):
                sampler = GaussianAncestral(num_steps, variance=variance)
                x = self._draw(denoiser, CHAIN, sampler, 1, seeds)
                known = ancestral_moments(ladder, MEAN, STD, variance)
                yield from self._moments(f"DDPM, {variance} variance, {num_steps} steps", known, x[:, 0])

    def _mixture(self, seeds: Iterator[int]) -> Iterator[Check]:
        """Two Gaussians apart along the first axis; the second is one Gaussian, which no guidance touches."""
        for trajectory in _trajectories():
            denoiser = _two_gaussians(trajectory.process)
            upper = denoiser.condition(torch.ones(self.num, dtype=torch.int64))
            cases: list[tuple[str, Condition, Guidance, float]] = [
                ("unguided", Condition(self.num), Guidance(), 0.0),
                (f"classifier-free scale {SCALE}", upper, ClassifierFree(SCALE), SCALE),
            ]
            if trajectory.process is not FLOW:  # which starts where a gradient says nothing of the data
                cases.append((f"gradient scale {SCALE}", upper, ExactClassifier(denoiser, SCALE), SCALE))
            for name, condition, guidance, scale in cases:
                draws = self._draw(
                    denoiser, trajectory.process, trajectory.sampler, 2, seeds, condition=condition, guidance=guidance
                )

                def end(x: Tensor, scale: float = scale, trajectory: _Trajectory = trajectory) -> Tensor:
                    return trajectory.map(x, trajectory.ladder, two_gaussians_x0(GAP, WIDTH, UPPER_SHARE, scale))

                prior_std = trajectory.ladder.prior_std
                mean = expectation(end, prior_std)
                yield mean_check(f"mean of two Gaussians, {trajectory.name}, {name}", mean, draws[:, 0].tolist())
                if scale == 0.0:
                    share = expectation(lambda x: (end(x) > 0).double(), prior_std)
                    upper_draws = (draws[:, 0] > 0).double().tolist()
                    yield mean_check(
                        f"share of the upper one, {trajectory.name}", share, upper_draws, exact_within=QUADRATURE
                    )
                else:
                    aside = moments_of_map(
                        lambda x, w=trajectory: w.map(x, w.ladder, gaussian_x0(0.0, WIDTH)),  # type: ignore[misc]
                        prior_std,
                    )
                    yield from self._moments(f"the other axis, {trajectory.name}, {name}", aside, draws[:, 1])

    def _shares_of_a_random_walk(self, seeds: Iterator[int]) -> Iterator[Check]:
        """The limit of many steps is the data's distribution itself; what 100 steps leave is a fiftieth at most."""
        denoiser = _two_gaussians(CHAIN)
        for name, sampler in (
            ("DDPM, optimal variance", GaussianAncestral(100, variance="optimal")),
            ("DDIM, eta 1", DDIM(100, eta=1.0)),
        ):
            x = self._draw(denoiser, CHAIN, sampler, 2, seeds)[:, 0]
            share = (x > 0).double().tolist()
            yield mean_check(f"share of the upper one, {name}, 100 steps", UPPER_SHARE, share, exact_within=0.02)


def _two_gaussians(process: GaussianProcess) -> MixtureDenoiser:
    means = torch.tensor([[-GAP, 0.0], [GAP, 0.0]]).view(2, 2, 1, 1)
    return MixtureDenoiser(process, means, torch.tensor([WIDTH] * 2), torch.tensor([1 - UPPER_SHARE, UPPER_SHARE]))
