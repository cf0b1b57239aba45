import itertools
import math

import pytest
import torch

from trilemma.evaluation.metrics.stacked_modes import combined_label, stacked_modes


def test_combinations_are_read_as_one_number():
    classes = torch.tensor([[1, 2, 3], [0, 0, 7], [9, 9, 9]])
    assert combined_label(classes, 10).tolist() == [123, 7, 999]
    assert combined_label(torch.tensor([[1, 2]]), 3).tolist() == [5]


def test_every_mode_equally_often_is_uniform():
    classes = torch.tensor(list(itertools.product(range(10), repeat=3))).repeat(26, 1)
    modes = stacked_modes(classes, 10)
    assert (modes.num_modes, modes.modes_hit) == (1000, 1000)
    assert modes.uniform_kl == pytest.approx(0.0, abs=1e-12)


def test_collapse_to_m_modes_costs_the_logarithm_of_what_is_lost():
    one = torch.tensor([[4, 0, 2]]).repeat(50, 1)
    assert stacked_modes(one, 10).uniform_kl == pytest.approx(math.log(1000), rel=1e-12)
    same = torch.arange(10).repeat(7)[:, None].expand(-1, 3)  # one digit in all three colours
    modes = stacked_modes(same, 10)
    assert modes.modes_hit == 10
    assert modes.uniform_kl == pytest.approx(math.log(100), rel=1e-12)


def test_unequal_frequencies_by_hand():
    classes = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 0]])
    modes = stacked_modes(classes, 2)
    assert modes.modes_hit == 2
    assert modes.uniform_kl == pytest.approx(0.75 * math.log(3) + 0.25 * math.log(1), rel=1e-12)


def test_few_uniform_draws_give_the_stated_bias():
    draws = torch.randint(10, (26_000, 3), generator=torch.Generator().manual_seed(0))
    # The plug-in estimate times 2N follows chi-squared with 999 degrees of freedom: deviation 45 of 999.
    assert stacked_modes(draws, 10).uniform_kl == pytest.approx(999 / 52_000, rel=0.15)


@pytest.mark.parametrize("classes", [torch.tensor([[0, 10]]), torch.tensor([[-1, 5]])])
def test_a_class_out_of_range_is_refused_though_the_combination_is_not(classes):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        stacked_modes(classes, 10)


@pytest.mark.parametrize("shape", [(4,), (0, 3)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match="classes of each channel"):
        stacked_modes(torch.zeros(shape, dtype=torch.int64), 10)
