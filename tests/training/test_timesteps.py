import pytest
import torch

from trilemma.processes.noise import TorchNoise
from trilemma.training.timesteps import ImportanceTimesteps


def seen(num_timesteps, losses, times=20):
    steps = ImportanceTimesteps(num_timesteps)
    for _ in range(times):
        steps.update(torch.arange(1, num_timesteps + 1), losses)
    return steps


def test_uniform_until_every_timestep_has_been_seen_often_enough():
    steps = ImportanceTimesteps(4, min_count=3)
    for _ in range(10):
        steps.update(torch.tensor([1, 2, 3]), torch.tensor([1.0, 5.0, 9.0]))
    torch.testing.assert_close(steps.probabilities(), torch.full((4,), 0.25, dtype=torch.float64))
    for _ in range(4):
        steps.update(torch.tensor([4]), torch.tensor([2.0]))
    assert steps.probabilities().std() > 0.1


def test_probabilities_follow_the_root_mean_square_loss():
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(seen(4, losses).probabilities(), (losses / 10).double(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("table", [[1.0, 1.0, 1.0], [0.001, 5.0, 2.0], [9.0, 0.1, 1.0]])
def test_the_weighted_loss_is_the_exact_sum_for_any_importance_table(table):
    """Oracle 11: the expectation over i of L_i / (T p_i) is the mean of L, by enumeration and by drawing."""
    steps = seen(3, torch.tensor(table))
    loss = torch.tensor([0.3, 7.0, 2.0], dtype=torch.float64)
    p = steps.probabilities()
    torch.testing.assert_close((p * loss / (3 * p)).sum(), loss.mean())
    i, weight = steps.sample(200_000, TorchNoise(torch.Generator().manual_seed(0)))
    assert set(i.tolist()) <= {1, 2, 3}
    drawn = weight.double() * loss[i - 1]
    assert abs(drawn.mean() - loss.mean()) < 5 * drawn.std() / len(drawn) ** 0.5


def test_a_timestep_seen_twice_in_a_batch_counts_with_its_mean_square():
    steps = ImportanceTimesteps(2)
    steps.update(torch.tensor([1, 1, 2]), torch.tensor([3.0, 1.0, 2.0]))
    torch.testing.assert_close(steps.square, torch.tensor([5.0, 4.0], dtype=torch.float64))
    assert steps.count.tolist() == [2, 1]
    steps.update(torch.tensor([1]), torch.tensor([1.0]))
    torch.testing.assert_close(steps.square, torch.tensor([0.9 * 5.0 + 0.1 * 1.0, 4.0], dtype=torch.float64))


def test_the_history_is_in_the_state():
    steps = seen(3, torch.tensor([1.0, 2.0, 3.0]))
    other = ImportanceTimesteps(3)
    other.load_state_dict(steps.state_dict())
    assert torch.equal(other.probabilities(), steps.probabilities())


def test_uniform_on_request():
    steps = ImportanceTimesteps(3, uniform=True)
    for _ in range(20):
        steps.update(torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(steps.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
