"""Training times: their distribution, and weights that leave the mean loss as it is."""

from collections import deque
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from trilemma.errors import UserError
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, LinearBeta, LinearPath
from trilemma.processes.noise import TorchNoise
from trilemma.training.times import ChainTimes, LogNormalTimes, LossSecondMoment, UniformTimes

T = 8
PROCESS = GaussianProcess(LinearBeta())


def noise(seed=0):
    return TorchNoise(torch.Generator().manual_seed(seed))


def filled(history=3):
    times = LossSecondMoment(T, history=history, uniform_share=0.1)
    for i in range(1, T + 1):
        times.update(torch.full((history,), i / T, dtype=torch.float64), torch.full((history,), float(i)))
    return times


def test_chain_times_are_uniform_on_the_grid():
    t, weight = ChainTimes(T).sample(80_000, noise(), PROCESS)
    count = torch.bincount((t * T).round().long(), minlength=T + 1)
    assert torch.equal(t * T, (t * T).round())
    assert count[0] == 0
    assert ((count[1:] / 10_000 - 1).abs() < 0.05).all()
    assert torch.equal(weight, torch.ones(80_000))


def test_times_are_uniform_until_every_one_has_its_history():
    times = LossSecondMoment(T, history=2)
    times.update(torch.arange(1, T + 1).double() / T, torch.arange(T).double())
    torch.testing.assert_close(times.probabilities(), torch.full((T,), 1 / T, dtype=torch.float64))
    times.update(torch.arange(1, T + 1).double() / T, torch.arange(T).double())
    assert times.probabilities()[0] < 1 / T < times.probabilities()[-1]


def test_probabilities_are_those_of_the_paper():
    """p in proportion to the root of the mean square, a share of it uniform."""
    expected = torch.arange(1, T + 1).double()
    expected = 0.9 * expected / expected.sum() + 0.1 / T
    torch.testing.assert_close(filled().probabilities(), expected)


def test_the_weighted_loss_is_unbiased():
    times = filled()
    p = times.probabilities()
    t, weight = times.sample(200_000, noise(), PROCESS)
    index = (t * T).round().long() - 1
    torch.testing.assert_close(weight.double(), 1 / (T * p[index]), rtol=1e-6, atol=0)
    loss = torch.arange(T).double().square()
    expected = (p * (1 / (T * p)) * loss).sum()
    torch.testing.assert_close(expected, loss.mean())
    assert float((weight * loss[index]).mean()) == pytest.approx(float(loss.mean()), rel=0.02)
    assert float(weight.mean()) == pytest.approx(1.0, abs=0.02)


def test_the_history_is_that_of_queues():
    """Random batches, times repeated within and over batches, against one queue a time."""
    generator = torch.Generator().manual_seed(0)
    times, queues = LossSecondMoment(4, history=3), [deque(maxlen=3) for _ in range(4)]
    for size in (1, 2, 7, 3, 30, 5, 1):
        index = torch.randint(4, (size,), generator=generator)
        loss = torch.randn(size, generator=generator, dtype=torch.float64)
        times.update((index + 1.0).double() / 4, loss)
        for i, value in zip(index.tolist(), loss.tolist(), strict=True):
            queues[i].append(value)
        for i, queue in enumerate(queues):
            assert sorted(
                times.losses[i].tolist()[: len(queue)] if len(queue) < 3 else times.losses[i].tolist()
            ) == sorted(queue)


def test_the_history_comes_back_with_the_state():
    times, other = filled(), LossSecondMoment(T, history=3, uniform_share=0.1)
    other.load_state_dict(times.state_dict())
    assert torch.equal(other.probabilities(), times.probabilities())
    assert torch.equal(other.sample(50, noise(3), PROCESS)[0], times.sample(50, noise(3), PROCESS)[0])


def share(rank: int, folder: str) -> None:
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        times = LossSecondMoment(T, history=4)
        for step in range(20):
            generator = torch.Generator().manual_seed(step)
            t = (torch.randint(T, (6,), generator=generator) + 1.0).double() / T
            loss = torch.rand(6, generator=generator)
            times.update(t[rank * 3 : rank * 3 + 3], loss[rank * 3 : rank * 3 + 3])
    finally:
        dist.destroy_process_group()
    torch.save(times.state_dict(), f"{folder}/{rank}.pt")


def test_two_processes_keep_the_history_of_one(tmp_path: Path):
    other = mp.get_context("spawn").Process(target=share, args=(1, str(tmp_path)))
    other.start()
    share(0, str(tmp_path))
    other.join()
    assert other.exitcode == 0
    alone = LossSecondMoment(T, history=4)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        t = (torch.randint(T, (6,), generator=generator) + 1.0).double() / T
        alone.update(t, torch.rand(6, generator=generator))
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(state[key], value) for key, value in alone.state_dict().items())


def test_uniform_times_have_one_draw_in_every_stratum():
    t, _ = UniformTimes().sample(64, noise(), PROCESS)
    assert ((t > 0) & (t <= 1)).all()
    assert torch.equal(((1 - t) * 64).floor().long(), torch.arange(64))


@pytest.mark.parametrize("schedule", [EDM(), LinearPath()], ids=["edm", "flow"])
def test_log_normal_times_have_the_law_that_they_name(schedule):
    process = GaussianProcess(schedule)
    t, _ = LogNormalTimes(-1.2, 1.2).sample(50_000, noise(), process)
    log_ratio = -0.5 * process.log_snr(t)
    assert float(log_ratio.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(log_ratio.std()) == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize(
    "build",
    [lambda: ChainTimes(0), lambda: LossSecondMoment(5, history=0), lambda: LogNormalTimes(0.0, 0.0)],
)
def test_what_makes_no_law_is_refused(build):
    with pytest.raises(UserError, match="times"):
        build()
