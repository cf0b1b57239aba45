import json
import math

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels
from trilemma.conditions.none import NoCondition
from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.evaluation.likelihood import score_split, summarise
from trilemma.models.capabilities import Likelihood
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.processes.categorical.closed_form import Absorbing, Uniform
from trilemma.processes.categorical.schedules import Cosine, Linear
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import Guidance
from trilemma.training.loss_weights import Simple
from trilemma.training.timesteps import ChainTimesteps

SIDE = 4


def split_of(num, *, levels=256, labels=None):
    generator = torch.Generator().manual_seed(num)
    images = torch.randint(levels, (num, 1, SIDE, SIDE), generator=generator) * (255 // (levels - 1))
    return Split(
        images=images.to(torch.uint8), labels=labels, captions=None, index=torch.randperm(num, generator=generator)
    )


class Bernoulli(nn.Module):
    """Independent pixels, each white with probability 1/4: its likelihood is exact, by counting."""

    kind = "exact"

    def __init__(self):
        super().__init__()
        self.asked = []

    def score_likelihood(self, batch, *, seed=0):
        self.asked.append((len(batch["index"]), self.training, seed, sorted(batch)))
        white = (batch["image"] > 0).flatten(1).sum(1)
        nats = white * math.log(4) + (SIDE**2 - white) * math.log(4 / 3)
        return Likelihood(nats, self.kind, SIDE**2, "subpixel")


def test_an_exact_likelihood_by_counting():
    split = split_of(30, levels=2)
    score = score_split(Bernoulli(), split, batch_size=8)
    white = [(image > 0).sum().item() for image in split.images]
    nats = [w * math.log(4) + (SIDE**2 - w) * math.log(4 / 3) for w in white]
    mean = math.fsum(nats) / 30
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in nats) / 29 / 30)
    assert (score.kind, score.unit, score.num_dims, score.num_images) == ("exact", "subpixel", 16, 30)
    # The toy computes in float32.
    assert score.nats_per_image == pytest.approx(mean, rel=1e-6)
    assert score.nats_standard_error == pytest.approx(error, rel=1e-5)
    assert score.bits_per_dim == pytest.approx(mean / 16 / math.log(2), rel=1e-6)
    assert score.bits_standard_error == pytest.approx(error / 16 / math.log(2), rel=1e-5)


def diffusion(process, num_classes):
    class Ignorant(nn.Module):
        """Believes every class equally likely, whatever it sees."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, xt, t, pooled, context, mask):
            return self.weight.expand(*xt.shape, num_classes)

    return DiscreteDiffusion(
        codec=PixelLevels((1, SIDE, SIDE), num_classes),
        process=process,
        network=Ignorant(),
        condition=NoCondition(),
        sampler=Ancestral(2),
        guidance=Guidance(),
        times=ChainTimesteps(6),
        weight=Simple(),
    ).double()


def test_ignorance_costs_the_logarithm_of_the_classes_under_absorbing_noise():
    # The bound of a token is a sum over masked times whose expectation is log K exactly; each image draws it once,
    # and the standard error must tell of that noise.
    score = score_split(diffusion(Absorbing(4, Linear()), 4), split_of(400), batch_size=100)
    assert (score.kind, score.unit, score.num_dims) == ("bound", "token", SIDE**2)
    assert 0.0 < score.bits_standard_error < 0.05
    assert abs(score.bits_per_dim - 2.0) < 4 * score.bits_standard_error
    # Bernoulli steps: token by token the variance is known, sum over i of the conditional reveals.
    assert score.bits_standard_error == pytest.approx(absorbing_error(num_images=400), rel=0.15)


def absorbing_error(num_images):
    """Standard error of the mean of N images of 16 tokens, at T = 6 steps of linear absorbing noise and 2 bits a token.

    At time t = i/T a token is masked with probability t and then costs the share (t - s) / t = 1/i of its 2 bits, drawn
    anew at each step: the variance of a token is the sum over i of 4 (1/i)^2 t (1 - t).
    """
    variance = sum(4 / i**2 * (i / 6) * (1 - i / 6) for i in range(1, 7))
    return math.sqrt(variance / SIDE**2 / num_images)


@pytest.mark.parametrize("process", [Absorbing(3, Linear()), Uniform(3, Cosine())], ids=lambda p: type(p).__name__)
def test_the_batch_size_changes_nothing(process):
    model = diffusion(process, 3)
    split = split_of(23)
    whole = score_split(model, split, batch_size=23)
    assert whole.nats_standard_error > 0
    for batch_size in (1, 7):
        part = score_split(model, split, batch_size=batch_size)
        assert part.nats_per_image == pytest.approx(whole.nats_per_image, rel=1e-12)
        assert part.nats_standard_error == pytest.approx(whole.nats_standard_error, rel=1e-9)
    other = score_split(model, split, batch_size=23, seed=1)
    assert other.nats_per_image != whole.nats_per_image


def test_the_model_sees_each_image_once_in_evaluation_mode():
    model = Bernoulli().train()
    score = score_split(model, split_of(20, labels=torch.zeros(20)), batch_size=8, max_images=11, seed=5)
    assert model.asked == [
        (8, False, 5, ["image", "index", "label", "row"]),
        (3, False, 5, ["image", "index", "label", "row"]),
    ]
    assert score.num_images == 11
    assert model.training


@pytest.mark.parametrize("change", [{"kind": "bound"}, {"unit": "token"}, {"num_dims": 8}])
def test_numbers_of_different_kinds_are_not_mixed(change):
    fields = {"nats": torch.ones(2), "kind": "exact", "num_dims": 16, "unit": "subpixel"}
    with pytest.raises(ValueError, match="not comparable"):
        summarise([Likelihood(**fields), Likelihood(**fields | change)])


def test_an_impossible_image_is_infinitely_unlikely_and_survives_json():
    score = summarise([Likelihood(torch.tensor([1.0, math.inf]), "exact", 16, "subpixel")])
    assert score.bits_per_dim == math.inf
    assert math.isnan(score.bits_standard_error)
    plain = json.loads(json.dumps(score.to_dict(), allow_nan=False))
    assert float(plain["bits_per_dim"]) == math.inf
    assert plain["kind"] == "exact"


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="of 1 of 3 images is not a number"):
        summarise([Likelihood(torch.tensor([1.0, math.nan, 2.0]), "exact", 16, "subpixel")])


def test_one_value_an_image_is_demanded():
    class Mean(Bernoulli):
        def score_likelihood(self, batch, *, seed=0):
            return Likelihood(torch.ones(1), "exact", 16, "subpixel")

    with pytest.raises(ValueError, match=r"4 images were scored with nats \[1\]"):
        score_split(Mean(), split_of(4))


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="at least 2 images"):
        score_split(Bernoulli(), split_of(5), max_images=1)


def test_what_gives_no_likelihood_is_refused():
    with pytest.raises(UserError, match="a Linear gives no likelihood"):
        score_split(nn.Linear(1, 1), split_of(4))


@pytest.mark.parametrize(("kind", "sign"), [("exact", "= "), ("bound", "<= "), ("estimate", "~ ")])
def test_the_sign_says_the_kind(kind, sign):
    score = summarise([Likelihood(torch.tensor([1.0, 3.0]) * math.log(2), kind, 2, "token")])
    assert str(score) == f"{sign}1.0000 +- 0.5000 bits/token ({kind})"
