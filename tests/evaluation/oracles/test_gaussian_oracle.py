from itertools import count

import pytest

from trilemma.evaluation.oracles import gaussian as module
from trilemma.evaluation.oracles.gaussian import GaussianSampling
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.samplers.gaussian import base as gaussian_sampler
from trilemma.samplers.gaussian import ddim, dpm_solver, heun
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import ClassifierFree

NUM = 4000


@pytest.mark.parametrize("seed", [0, 1])
def test_the_samplers_hold(seed):
    checks = GaussianSampling(num=NUM).run(seed)
    assert [check for check in checks if not check.passed] == []
    assert len(checks) == len({check.name for check in checks}) == 93


def test_a_seed_draws_the_same_numbers(monkeypatch):
    monkeypatch.setattr(module, "_trajectories", lambda: [])
    oracle = GaussianSampling(num=1000)
    assert oracle.run(3) == oracle.run(3) != oracle.run(4)


def no_history(monkeypatch):
    """A solver that says it is of second order, and is of first."""
    init = DPMSolver.__init__

    def first_order(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.order = 1

    monkeypatch.setattr(DPMSolver, "__init__", first_order)


def euler_for_heun(monkeypatch):
    init = Heun.__init__

    def first_order(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self.order = 1

    monkeypatch.setattr(Heun, "__init__", first_order)


def eta_ignored(monkeypatch):
    init = DDIM.__init__

    def without(self, num_steps, *, eta=0.0):
        init(self, num_steps, eta=0.0)

    monkeypatch.setattr(DDIM, "__init__", without)


def large_for_small(monkeypatch):
    right = GaussianAncestral._variance

    def wrong(self, prediction, c0, small, large, log_range):
        return large if self.variance == "small" else right(self, prediction, c0, small, large, log_range)

    monkeypatch.setattr(GaussianAncestral, "_variance", wrong)


def other_grid(monkeypatch):
    right = gaussian_sampler.times
    monkeypatch.setattr(
        gaussian_sampler,
        "times",
        lambda schedule, num_steps, grid, t_start: right(
            schedule, num_steps, "uniform" if schedule.num_steps and grid == "trailing" else grid, t_start
        ),
    )


def scale_off_by_one(monkeypatch):
    init = ClassifierFree.__init__
    monkeypatch.setattr(ClassifierFree, "__init__", lambda self, scale: init(self, scale + 1.0))


def no_gradient(monkeypatch):
    for sampler in (ddim, dpm_solver, heun):
        monkeypatch.setattr(sampler, "guided_x0", gaussian_sampler.conditional_x0)


def short_of_noise(monkeypatch):
    right = GaussianProcess.prior
    monkeypatch.setattr(GaussianProcess, "prior", lambda self, *args, **options: 0.9 * right(self, *args, **options))


MISTAKES = {
    GaussianSampling._gaussian: [
        no_history,
        euler_for_heun,
        eta_ignored,
        large_for_small,
        other_grid,
        short_of_noise,
    ],
    GaussianSampling._mixture: [scale_off_by_one, no_gradient],
}


@pytest.mark.parametrize(
    ("part", "mistake"),
    [pytest.param(part, mistake, id=mistake.__name__) for part, mistakes in MISTAKES.items() for mistake in mistakes],
)
def test_a_mistake_is_found(monkeypatch, part, mistake):
    mistake(monkeypatch)
    assert not all(check.passed for check in part(GaussianSampling(num=NUM), count(0)))


def test_too_few_draws_are_refused():
    with pytest.raises(ValueError, match="need at least 1000"):
        GaussianSampling(num=10)
