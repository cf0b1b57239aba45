import pytest
import torch
from distribution_cases import random

from drawn import assert_drawn_from
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.processes.noise import Noise


def kept(distribution):
    return (distribution.logits > -torch.inf).sum(-1)


def test_the_likeliest_classes_are_kept():
    logits = random(5, 4, 20)
    for k in (1, 3, 19, 20, 50):
        cut = Categorical(logits).sharpened(top_k=k)
        assert (kept(cut) == min(k, 20)).all()
        assert torch.equal(cut.logits.argmax(-1), logits.argmax(-1))
    assert torch.equal(Categorical(logits).sharpened(top_k=1).sample(Noise(0, torch.arange(5))), logits.argmax(-1))


def test_the_smallest_set_that_holds_the_mass_is_kept():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    for top_p, num in ((0.3, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 4)):
        assert kept(Categorical(logits).sharpened(top_p=top_p)) == num
    # After the temperature: 0.4, 0.3, ... squared hold 0.53, 0.30, ...
    assert kept(Categorical(logits).sharpened(temperature=0.5, top_p=0.5)) == 1
    # Of the two that top_k leaves the first holds 0.57.
    assert kept(Categorical(logits).sharpened(top_k=2, top_p=0.55)) == 1


def test_equal_classes_stand_together():
    logits = torch.tensor([[1.0, 0.0, 0.0, 0.0, -1.0]])
    assert kept(Categorical(logits).sharpened(top_k=2)) == 4
    assert kept(Categorical(logits).sharpened(top_p=0.6)) == 4


def test_what_is_cut_is_never_drawn_and_the_rest_is_as_before():
    logits = random(1, 12)
    cut = Categorical(logits).sharpened(temperature=0.8, top_k=6).logits
    drawn = Categorical(cut.expand(20_000, 12)).sample(Noise(1, torch.arange(20_000)))
    expected = (logits / 0.8).exp()[0] * (cut[0] > -torch.inf)
    assert_drawn_from(drawn, expected / expected.sum())


def test_half_precision_may_be_cut():
    cut = Categorical(random(2, 3, 9).bfloat16()).sharpened(top_p=0.5)
    assert cut.logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"temperature": 0.0}, "temperature=0"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_p": 1.1}, "top_p=1.1"),
    ],
)
def test_an_option_out_of_range_is_refused(options, named):
    with pytest.raises(UserError, match=named):
        Categorical(torch.zeros(1, 4)).sharpened(**options)
