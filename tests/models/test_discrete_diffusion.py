import math

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.errors import UserError
from trilemma.models.discrete_diffusion import DiscreteDiffusion
from trilemma.networks.transformer.bidirectional import BidirectionalTransformer
from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Cosine, Linear, VQDiffusionPaper
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.training.loss_weights import KnowsSNR, MinSNR, Simple, SoftMinSNR
from trilemma.training.timesteps import ChainTimesteps, ImportanceTimesteps, UniformTimesteps, coprime_stride

K, SIDE = 4, 3


def model_of(process, *, seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    network = BidirectionalTransformer(
        num_states=process.num_states,
        num_classes=K,
        code_shape=(SIDE, SIDE),
        dim=16,
        depth=2,
        num_heads=2,
        condition_dim=8,
    )
    for parameter in network.parameters():  # a zero head knows nothing: give it opinions
        nn.init.normal_(parameter, std=0.1)
    condition = LabelCondition(3, 8)
    nn.init.normal_(condition.embedding.weight, std=5.0)
    arguments = {
        "codec": PixelLevels((1, SIDE, SIDE), K),
        "process": process,
        "network": network,
        "condition": condition,
        "sampler": Ancestral(5),
        "guidance": ClassifierFree(2.0),
        "times": ImportanceTimesteps(10),
        "weight": Simple(),
        **changes,
    }
    return DiscreteDiffusion(**arguments).to(dtype)


PROCESSES = [MaskAndReplace(K, VQDiffusionPaper()), Absorbing(K, Linear()), Uniform(K, Cosine())]


def test_settings_may_be_given_where_samples_are_asked_for():
    model = model_of(PROCESSES[0])
    expected = model.sample(4, condition=1, sampler=Ancestral(3, temperature=0.5), guidance=ClassifierFree(3.0))
    found = model.sample(4, condition=1, sampler="ancestral", num_steps=3, temperature=0.5, guidance=3.0)
    assert torch.equal(found, expected)
    with pytest.raises(UserError, match="choose sampler=ancestral"):
        model.sample(4, sampler="ddim")


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_samples_do_not_depend_on_the_batch_size(process):
    """Images 0..63 drawn 1, 7 and 64 at a time are equal with a float64 network."""
    model = model_of(process, dtype=torch.float64)
    labels = [i % 3 for i in range(64)]
    whole = model.sample(64, condition=labels, batch_size=64)
    assert len(torch.unique(whole.flatten(1), dim=0)) > 32
    for batch_size in (1, 7):
        assert torch.equal(model.sample(64, condition=labels, batch_size=batch_size), whole)
    assert torch.equal(model.sample(3, condition=labels[17:20], first_index=17), whole[17:20])
    assert not torch.equal(model.sample(64, condition=labels, seed=1), whole)


def test_guidance_zero_is_unconditional_and_one_is_conditional():
    model = model_of(PROCESSES[0], dtype=torch.float64)
    unconditional = model.sample(16, condition=None, guidance=Guidance())
    conditional = model.sample(16, condition=1, guidance=Guidance())
    assert torch.equal(model.sample(16, condition=1, guidance=ClassifierFree(0.0)), unconditional)
    assert torch.equal(model.sample(16, condition=1, guidance=ClassifierFree(1.0)), conditional)
    assert not torch.equal(unconditional, conditional)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_training_loss_is_an_unbiased_estimate_of_the_bound(process):
    model = model_of(process, auxiliary_weight=0.0, condition_dropout=0.0, times=ChainTimesteps(10)).eval()
    tokens = torch.randint(K, (1, SIDE**2), generator=torch.Generator().manual_seed(1))
    batch = {"code": tokens, "label": torch.tensor([1]), "index": torch.tensor([0])}
    many = {"code": tokens.expand(500, -1), "label": torch.tensor([1]).expand(500), "index": torch.arange(500)}
    torch.manual_seed(3)
    losses = torch.stack([model.loss({k: v[:50] for k, v in many.items()}).total.detach() for _ in range(80)])
    scored = model.score_likelihood(many)
    exact = (scored.nats - process.prior_kl(tokens).sum(1)) / SIDE**2
    error = (losses.var() / len(losses) + exact.var() / len(exact)).sqrt()
    assert abs(losses.mean() - exact.mean()) < 4 * error
    assert scored.kind == "bound"
    assert scored.num_dims == SIDE**2
    assert model.score_likelihood(batch).nats.shape == (1,)


def test_the_loss_reaches_the_network_and_the_condition_but_not_the_codec():
    model = model_of(PROCESSES[0])
    model.loss({"image": torch.rand(32, 1, SIDE, SIDE) * 2 - 1, "label": torch.randint(3, (32,))}).total.backward()
    assert all(p.grad is not None for p in model.network.parameters())
    assert model.condition.embedding.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.codec.parameters())


def test_codes_and_images_give_the_same_tokens():
    model = model_of(PROCESSES[0])
    images = torch.rand(5, 1, SIDE, SIDE) * 2 - 1
    code = model.tokens({"image": images})
    assert code.shape == (5, SIDE**2)
    assert torch.equal(model.tokens({"code": code, "image": images}), code)


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 10, 100, 1000])
def test_validation_covers_every_timestep(num_timesteps):
    stride = coprime_stride(num_timesteps)
    assert math.gcd(stride, num_timesteps) == 1
    assert len({(i * stride) % num_timesteps for i in range(num_timesteps)}) == num_timesteps


def test_the_losses_by_time_make_up_the_validation_loss(monkeypatch):
    """Their mean and the prior's share are the bound in bits per token; T images stand at all of 1/T..1."""
    model, logged = model_of(PROCESSES[0], dtype=torch.float64).eval(), {}
    monkeypatch.setattr(model, "log", lambda name, value, **options: logged.update({name: value}))
    T = model.num_timesteps
    tokens = torch.randint(K, (T, SIDE**2), generator=torch.Generator().manual_seed(1))
    batch = {"code": tokens, "label": torch.arange(T) % 3, "index": torch.arange(T)}
    with torch.no_grad():
        found = model.validation_step(batch, 0)["diagnostics"]
    prior = model.process.prior_kl(tokens).mean() / math.log(2)
    assert torch.allclose(found["time_loss"].mean() + prior, logged["val/bits_per_token"])
    assert torch.equal((found["time"] * T).round().sort().values, torch.arange(1.0, T + 1))


def test_what_cannot_be_sampled_is_refused():
    model = model_of(PROCESSES[0])
    for bad, message in [
        ({"condition": 3}, "labels are 0 to 2"),
        ({"condition": [0, 1]}, "sequence of 4"),
        ({"condition": -1}, "labels are 0 to 2"),
    ]:
        with pytest.raises(UserError, match=message):
            model.sample(4, **bad)
    with pytest.raises(UserError, match="at least one"):
        model.sample(0)


def test_a_continuous_codec_is_refused():
    with pytest.raises(UserError, match="needs tokens"):
        model_of(PROCESSES[0], codec=Pixels((1, SIDE, SIDE)))


def test_times_off_the_grid_are_refused():
    with pytest.raises(UserError, match="take model/times=importance or chain"):
        model_of(PROCESSES[0], times=UniformTimesteps())


def test_a_weight_by_signal_to_noise_needs_a_process_that_has_one():
    class Nameless(Absorbing):
        unsupported = frozenset({KnowsSNR})

    process = Nameless(K, Linear())
    model_of(process)
    with pytest.raises(UserError, match=r"process Nameless has no signal-to-noise ratio .* take model/weight=simple"):
        model_of(process, weight=MinSNR())


@pytest.mark.parametrize("weight", [MinSNR(0.5), SoftMinSNR(0.5)], ids=lambda weight: type(weight).__name__)
def test_a_weight_multiplies_the_terms_of_the_bound(weight):
    """At times that are given, the loss is the weighted mean of the terms; what is logged and remembered is the bound."""
    t = torch.arange(1, 11, dtype=torch.float64) / 10

    class Given(ChainTimesteps):
        def sample(self, num, noise, process):
            return t, torch.ones(num)

    losses, kept = {}, {}
    batch = {"code": torch.randint(K, (10, SIDE**2)), "label": torch.arange(10) % 3}
    for name, choice in (("plain", Simple()), ("weighted", weight)):
        torch.manual_seed(5)
        model = model_of(PROCESSES[0], dtype=torch.float64, times=Given(10), weight=choice, auxiliary_weight=0.0)
        torch.manual_seed(6)
        losses[name], kept[name] = model.loss(batch), model.times.mean_loss()
    terms = kept["plain"]
    torch.testing.assert_close(losses["plain"].total, 10 * terms.mean())
    alpha_bar = PROCESSES[0].schedule.alpha_bar(t)
    factor = weight.of_x0(alpha_bar / (1 - alpha_bar)) * (1 - alpha_bar) / alpha_bar
    factor[-1] = 1.0  # nothing is kept at t = 1
    torch.testing.assert_close(losses["weighted"].total, 10 * (factor * terms).mean())
    assert torch.equal(kept["weighted"], terms)
    assert torch.equal(losses["weighted"].terms["bound"], losses["plain"].terms["bound"])


def test_data_with_captions_and_labels_trains_under_labels():
    batch = {"code": torch.randint(K, (6, SIDE**2)), "label": torch.arange(6) % 3, "index": torch.arange(6)}
    losses = []
    for more in ({}, {"caption": ["a digit"] * 6}):
        model = model_of(PROCESSES[0])
        torch.manual_seed(6)
        losses.append(model.loss(batch | more).total)
    assert torch.equal(*losses)
    with pytest.raises(UserError, match="condition=label needs a data set with labels"):
        model.loss({"code": batch["code"], "caption": ["a digit"] * 6, "index": batch["index"]})


def test_training_mode_is_restored_after_sampling():
    model = model_of(PROCESSES[0]).train()
    model.sample(2, condition=1)
    assert model.training
    assert model.network.training
    assert not model.codec.training
