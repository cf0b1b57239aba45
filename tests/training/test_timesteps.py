"""Timestep samplers: their distributions, the weights that keep the loss unbiased, and the losses that they remember."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trilemma.errors import UserError
from trilemma.processes.categorical.closed_form import Absorbing
from trilemma.processes.categorical.schedules import Linear
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, LinearBeta, LinearPath
from trilemma.processes.noise import TorchNoise
from trilemma.training.timesteps import (
    ChainTimesteps,
    ImportanceTimesteps,
    LogNormalTimesteps,
    UniformTimesteps,
)

T = 8
PROCESS = GaussianProcess(LinearBeta())


def noise(seed=0):
    return TorchNoise(torch.Generator().manual_seed(seed))


def grid(num_steps):
    return torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps


def seen(losses, *, repeats=20, **options):
    times = ImportanceTimesteps(len(losses), **options)
    for _ in range(repeats):
        times.update(grid(len(losses)), losses)
    return times


@pytest.mark.parametrize("times", [ChainTimesteps(T), ImportanceTimesteps(T)], ids=lambda times: type(times).__name__)
def test_the_steps_of_a_chain_are_equally_likely_before_any_loss(times):
    t, weight = times.sample(80_000, noise(), PROCESS)
    assert (t.dtype, weight.dtype) == (torch.float64, torch.float32)
    count = torch.bincount(times.index(t), minlength=T + 1)
    assert torch.equal(t * T, (t * T).round())
    assert count[0] == 0
    assert ((count[1:] / 10_000 - 1).abs() < 0.05).all()
    assert torch.equal(weight, torch.ones(80_000))


@pytest.mark.parametrize("num_steps", [1, 3, 7, 100, 1000, 4000])
def test_every_time_of_a_grid_names_its_step(num_steps):
    times = ChainTimesteps(num_steps)
    assert torch.equal(times.index(grid(num_steps)), torch.arange(1, num_steps + 1))
    assert torch.equal(times.index(grid(num_steps).float()), torch.arange(1, num_steps + 1))


def test_uniform_until_every_step_has_been_seen_often_enough():
    times = ImportanceTimesteps(4, min_count=3)
    for _ in range(10):
        times.update(grid(4)[:3], torch.tensor([1.0, 5.0, 9.0]))
    torch.testing.assert_close(times.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    for _ in range(4):
        times.update(grid(4)[3:], torch.tensor([2.0]))
    assert times.probabilities().std() > 0.1


def test_probabilities_are_those_of_the_paper():
    """In proportion to the root of the mean square, a share of the draws uniform."""
    losses = torch.arange(1, T + 1).double()
    expected = 0.9 * losses / losses.sum() + 0.1 / T
    torch.testing.assert_close(seen(losses, uniform_share=0.1).probabilities(), expected)


def test_losses_that_are_all_zero_prefer_no_step():
    torch.testing.assert_close(seen(torch.zeros(4)).probabilities(), torch.full((4,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("table", [[1.0, 1.0, 1.0], [0.001, 5.0, 2.0], [9.0, 0.1, 1.0]])
def test_the_weighted_loss_is_the_exact_sum_for_any_importance_table(table):
    """The expectation over i of L_i / (T p_i) is the mean of L, by enumeration and by drawing."""
    times = seen(torch.tensor(table))
    loss = torch.tensor([0.3, 7.0, 2.0], dtype=torch.float64)
    p = times.probabilities()
    torch.testing.assert_close((p * loss / (3 * p)).sum(), loss.mean())
    t, weight = times.sample(200_000, noise(), PROCESS)
    i = times.index(t)
    assert set(i.tolist()) <= {1, 2, 3}
    torch.testing.assert_close(weight.double(), 1 / (3 * p[i - 1]), rtol=1e-6, atol=0)
    drawn = weight.double() * loss[i - 1]
    assert abs(drawn.mean() - loss.mean()) < 5 * drawn.std() / len(drawn) ** 0.5


@pytest.mark.parametrize(
    "process", [PROCESS, GaussianProcess(EDM()), GaussianProcess(LinearPath())], ids=["tokens", "edm", "flow"]
)
def test_uniform_times_have_one_draw_in_every_stratum_above_the_least_noise(process):
    t, _ = UniformTimesteps().sample(64, noise(), process)
    least = process.min_time if isinstance(process, GaussianProcess) else 0.0
    assert ((t > least) & (t <= 1)).all()
    assert torch.equal(((1 - t) / (1 - least) * 64).floor().long(), torch.arange(64))


@pytest.mark.parametrize("times", [ChainTimesteps(10), ImportanceTimesteps(10)], ids=["chain", "importance"])
def test_steps_of_a_continuous_process_lie_above_its_least_noise(times):
    process = GaussianProcess(EDM())
    t, _ = times.sample(500, noise(), process)
    assert float(t.min()) == pytest.approx(process.min_time)
    assert torch.equal(t, process.grid(times.index(t), 10))
    times.update(t, t)
    torch.testing.assert_close(times.mean_loss(), process.grid(torch.arange(1, 11), 10))


@pytest.mark.parametrize("schedule", [EDM(), LinearPath()], ids=["edm", "flow"])
def test_log_normal_times_have_the_distribution_that_they_name(schedule):
    process = GaussianProcess(schedule)
    t, _ = LogNormalTimesteps(-1.2, 1.2).sample(50_000, noise(), process)
    log_ratio = -0.5 * process.log_snr(t)
    assert float(log_ratio.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(log_ratio.std()) == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize("times", [ChainTimesteps(2), ImportanceTimesteps(2)], ids=lambda times: type(times).__name__)
def test_a_step_seen_twice_in_a_batch_counts_with_its_mean(times):
    times.update(torch.tensor([0.5, 0.5, 1.0]), torch.tensor([3.0, 1.0, 2.0]))
    torch.testing.assert_close(times.mean_loss(), torch.tensor([2.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(times.mean_square, torch.tensor([5.0, 4.0], dtype=torch.float64))
    assert times.counts.tolist() == [2, 1]
    times.update(torch.tensor([0.5]), torch.tensor([1.0]))
    torch.testing.assert_close(times.mean_loss(), torch.tensor([0.9 * 2.0 + 0.1 * 1.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(times.mean_square, torch.tensor([0.9 * 5.0 + 0.1 * 1.0, 4.0], dtype=torch.float64))


def test_the_mean_loss_is_zero_where_nothing_was_seen():
    times = ChainTimesteps(4)
    times.update(torch.tensor([0.75]), torch.tensor([-2.0], requires_grad=True))
    assert times.mean_loss().tolist() == [0.0, 0.0, -2.0, 0.0]
    assert times.counts.tolist() == [0, 0, 1, 0]
    assert not times.mean_loss().requires_grad


def test_the_losses_come_back_with_the_state():
    times, other = seen(torch.tensor([1.0, 2.0, 3.0])), ImportanceTimesteps(3)
    other.load_state_dict(times.state_dict())
    assert torch.equal(other.probabilities(), times.probabilities())
    assert torch.equal(other.mean_loss(), times.mean_loss())
    assert torch.equal(other.sample(50, noise(3), PROCESS)[0], times.sample(50, noise(3), PROCESS)[0])


def losses_of(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randint(T, (6,), generator=generator) + 1.0).double() / T, torch.rand(6, generator=generator)


def share(rank: int, folder: str) -> None:
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        times = ImportanceTimesteps(T)
        for step in range(20):
            t, loss = losses_of(step)
            times.update(t[rank * 3 : rank * 3 + 3], loss[rank * 3 : rank * 3 + 3])
    finally:
        dist.destroy_process_group()
    torch.save(times.state_dict(), f"{folder}/{rank}.pt")


def test_two_processes_remember_the_losses_of_one(tmp_path: Path):
    other = mp.get_context("spawn").Process(target=share, args=(1, str(tmp_path)))
    other.start()
    share(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    alone = ImportanceTimesteps(T)
    for step in range(20):
        alone.update(*losses_of(step))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(state[key], value) for key, value in alone.state_dict().items())


@pytest.mark.parametrize(
    "build",
    [
        lambda: ChainTimesteps(0),
        lambda: ImportanceTimesteps(5, decay=1.0),
        lambda: ImportanceTimesteps(5, min_count=-1),
        lambda: ImportanceTimesteps(5, uniform_share=1.5),
        lambda: LogNormalTimesteps(0.0, 0.0),
    ],
)
def test_settings_that_make_no_distribution_are_refused(build):
    with pytest.raises(UserError, match="times"):
        build()


def test_log_normal_times_need_a_gaussian_process():
    with pytest.raises(UserError, match="need a Gaussian process"):
        LogNormalTimesteps().sample(3, noise(), Absorbing(4, Linear()))
