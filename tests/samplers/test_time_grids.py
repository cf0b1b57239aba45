import itertools
import math

import numpy as np
import pytest

from trilemma.errors import UserError
from trilemma.processes.gaussian.schedules import EDM, VPSDE, CosineBeta, LinearBeta, LinearPath
from trilemma.samplers.gaussian.grids import times

CHAIN_GRIDS = ["trailing", "uniform", "linspace", "quadratic"]


def indices(grid, num_steps, length=1000):
    """DDPM's indices 0..T-1, rising, of a walk."""
    found = times(CosineBeta(length), num_steps, grid)
    on_chain = [t * length for t in found]
    assert on_chain == pytest.approx([round(i) for i in on_chain], abs=1e-9)
    return [round(i) - 1 for i in on_chain[-2::-1]]


@pytest.mark.parametrize("grid", CHAIN_GRIDS)
def test_any_number_of_steps_up_to_the_chain_gives_as_many_points_of_it(grid):
    for length, num_steps in [*itertools.product((97,), range(1, 98)), (1000, 50), (1000, 999), (1000, 1000)]:
        found = indices(grid, num_steps, length)
        assert len(found) == num_steps
        assert all(a < b for a, b in itertools.pairwise([-1, *found, length]))


def test_the_papers_spacings():
    assert indices("uniform", 50) == list(range(0, 1000, 20))
    assert indices("uniform", 3, 10) == [0, 3, 6]
    assert indices("trailing", 50) == list(range(19, 1000, 20))
    assert indices("trailing", 1000) == list(range(1000))
    assert indices("linspace", 10) == list(range(0, 1000, 111))
    assert indices("linspace", 1) == [999]
    published = [int(s) for s in np.linspace(0, math.sqrt(0.8 * 1000), 20) ** 2]
    assert indices("quadratic", 20) == published
    repeated = [int(s) for s in np.linspace(0, math.sqrt(0.8 * 1000), 100) ** 2]
    assert len(set(repeated)) < 100  # the paper's own setting spends calls on no step
    assert indices("quadratic", 100)[-80:] == repeated[-80:]


@pytest.mark.parametrize("num_steps", [2, 18, 40])
def test_karras_gives_edms_own_noise_levels(num_steps):
    schedule = EDM(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    found = [float(schedule.sigma(t)) for t in times(schedule, num_steps, "karras")]
    i = np.arange(num_steps) / (num_steps - 1)
    expected = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(found, [*expected, 0.0], rtol=1e-12)
    assert found[0] == 80.0


@pytest.mark.parametrize("schedule", [LinearBeta(), CosineBeta(), VPSDE()], ids=["linear", "cosine", "vp_sde"])
def test_karras_on_other_schedules_spaces_the_noise_over_the_data(schedule):
    found = times(schedule, 12, "karras")
    assert found[0] == 1.0
    assert found[-2:] == [schedule.min_time, 0.0]
    assert all(a > b for a, b in itertools.pairwise(found))
    levels = [math.exp(-float(schedule.log_snr(t)) / 14) for t in found[:-1]]
    np.testing.assert_allclose(np.diff(levels), (levels[-1] - levels[0]) / 11, rtol=1e-6)


@pytest.mark.parametrize("grid", CHAIN_GRIDS)
@pytest.mark.parametrize("t_start", [0.5, 0.3333, 0.05])
def test_a_walk_from_below_begins_there(grid, t_start):
    found = times(LinearBeta(), 20, grid, t_start)
    assert len(found) == 21
    assert (found[0], found[-1]) == (t_start, 0.0)
    assert all(a > b for a, b in itertools.pairwise(found))
    assert times(LinearPath(), 4, "trailing", 0.8) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert times(EDM(), 5, "karras", 0.6)[0] == 0.6


@pytest.mark.parametrize(
    ("schedule", "num_steps", "grid", "t_start", "words"),
    [
        (LinearBeta(100), 101, "trailing", 1.0, "the chain has 100 steps"),
        (LinearBeta(100), 101, "karras", 1.0, "the chain has 100 steps"),
        (LinearBeta(100), 51, "uniform", 0.5, "below t=0.5, 50 steps"),
        (LinearPath(), 10, "uniform", 1.0, "LinearPath is continuous: take trailing"),
        (EDM(), 10, "linspace", 1.0, "EDM is continuous"),
        (LinearPath(), 10, "karras", 1.0, "take trailing"),
        (LinearBeta(zero_terminal_snr=True), 10, "karras", 1.0, "take trailing"),
    ],
)
def test_what_does_not_fit_is_one_line(schedule, num_steps, grid, t_start, words):
    with pytest.raises(UserError, match=words) as refusal:
        times(schedule, num_steps, grid, t_start)
    assert "\n" not in str(refusal.value)
