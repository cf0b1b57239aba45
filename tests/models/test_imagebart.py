"""ImageBART on an enumerable toy: its bound, its samples and its cache, against sums over all sequences, in float64."""

import itertools

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.models.imagebart import ImageBART
from trilemma.networks.transformer.encoder_decoder import EncoderDecoderTransformer
from trilemma.processes.categorical.closed_form import MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Cosine, Linear
from trilemma.processes.noise import Noise
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.training.timesteps import ChainTimesteps


def build(image_shape=(1, 1, 2), K=3, T=3, *, labels=None, process=None, codec=None, scales=None, std=0.5, **options):
    torch.manual_seed(0)
    codec = codec or PixelLevels(image_shape, K)
    network = EncoderDecoderTransformer(
        num_classes=K,
        code_shape=codec.code_shape,
        num_scales=scales or T,
        dim=8,
        encoder_depth=2,
        decoder_depth=2,
        num_heads=2,
        condition_dim=labels and 4,
    )
    options = {"sampler": AutoregressiveSampler(), "guidance": Guidance(), **options}
    model = ImageBART(
        codec=codec,
        process=process or Uniform(K, Linear()),
        network=network,
        condition=LabelCondition(labels, 4) if labels else NoCondition(),
        times=ChainTimesteps(T),
        **options,
    )
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model.double().eval()


class Enumerated:
    """Distributions over all K^L sequences: of the process, and of the model, a matrix a scale."""

    def __init__(self, model, K=3, L=2):
        self.sequences = torch.tensor(list(itertools.product(range(K), repeat=L)))
        self.T, num = model.num_scales, len(self.sequences)
        condition = model.condition(None, num=num)
        self.p = []  # [x_i, x_{i-1}] for i = 1..T
        for i in range(1, self.T + 1):
            rows = []
            for noisy in self.sequences:
                context = torch.cat([torch.tensor([i]), noisy]).expand(num, -1)
                log_prob = model.distribution(self.sequences, condition, context).log_prob(self.sequences)
                rows.append(log_prob.sum(1).exp())
            self.p.append(torch.stack(rows).detach())
        self.q0 = [self._matrix(model.process.marginal(self.sequences, i / self.T)) for i in range(self.T + 1)]
        self.step = [
            self._matrix(model.process.transition(self.sequences, (i - 1) / self.T, i / self.T))
            for i in range(1, self.T + 1)
        ]
        self.prior = torch.full((num,), 1 / num, dtype=torch.float64)

    def _matrix(self, log_q):
        """From log q(. | sequence) of each position to probabilities of sequences, [num, num]."""
        each = [log_q[:, position, tokens] for position, tokens in enumerate(self.sequences.T)]
        return torch.stack(each).sum(0).exp()

    def marginal(self):
        x = self.prior
        for i in range(self.T, 0, -1):
            x = x @ self.p[i - 1]
        return x

    def bound(self):
        """Its expectation for every x_0, by the definition: prior, then one term a scale."""
        at_end = self.q0[self.T]
        nats = torch.xlogy(at_end, at_end / self.prior).sum(1)
        for i in range(1, self.T + 1):
            joint = self.q0[i - 1][:, :, None] * self.step[i - 1]  # [x_0, x_{i-1}, x_i]
            posterior = joint / self.q0[i][:, None, :]
            ratio = posterior / self.p[i - 1].T
            nats = nats + torch.xlogy(joint, ratio).sum((1, 2))
        return nats


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
@pytest.mark.parametrize("T", [1, 3])
def test_the_bound_is_what_sums_over_all_chains_give_and_never_below_the_likelihood(T, schedule):
    model = build(T=T, process=Uniform(3, schedule))
    exact = Enumerated(model)
    expected = exact.bound()
    num = 150
    images = model.decode(exact.sequences).double()
    batch = {"image": images.repeat_interleave(num, 0), "index": torch.arange(num * len(images))}
    scores = model.score_likelihood(batch).nats.view(-1, num)
    likelihood = model.score_likelihood({"image": images, "index": torch.arange(len(images))})
    assert (likelihood.kind, likelihood.unit, likelihood.num_dims) == ("bound", "subpixel", 2)
    error = scores.std(1) / num**0.5
    assert ((scores.mean(1) - expected).abs() < 4.5 * error + 1e-9).all()
    assert (expected >= -exact.marginal().log()).all()
    torch.testing.assert_close(exact.marginal().sum().item(), 1.0, rtol=0, atol=1e-12)


def test_samples_have_the_distribution_of_the_chain():
    model, num = build(), 4_000
    expected = num * Enumerated(model).marginal()
    drawn = model.sample_codes(Noise(0, torch.arange(num)), num)
    counts = (drawn @ torch.tensor([3, 1])).bincount(minlength=9)
    chi2 = ((counts - expected).square() / expected).sum().item()
    assert chi2 < 27.9, "the 0.9995 quantile of chi-squared with 8 degrees of freedom"
    assert expected.max() > 1.5 * expected.min(), "uniform samples would not do"


def test_the_loss_is_the_bound_without_the_prior():
    model, num = build(), 4_000
    images = model.decode(torch.tensor([[1, 2]])).double().expand(num, -1, -1, -1)
    torch.manual_seed(1)
    expected = Enumerated(model).bound()[5].item()
    loss = model.loss({"image": images, "index": torch.arange(num)}).total.item() * 2
    assert loss == pytest.approx(expected, rel=0.04)  # the prior's term is zero: all is noise at the end


class Uncached:
    """The same model by whole passes."""

    def __init__(self, model):
        self.model = model

    def start(self, condition, context=None):
        return condition, context, torch.empty(len(condition), 0, dtype=torch.int64)

    def step(self, token, state):
        condition, context, tokens = state
        tokens = tokens if token is None else torch.cat([tokens, token[:, None]], 1)
        rest = torch.zeros(len(tokens), self.model.num_positions - tokens.shape[1], dtype=torch.int64)
        logits = self.model.distribution(torch.cat([tokens, rest], 1), condition, context).logits
        return Categorical(logits[:, tokens.shape[1]]), (condition, context, tokens)


@pytest.mark.parametrize("guidance", [Guidance(), ClassifierFree(2.0)])
def test_cached_tokens_are_the_uncached_ones_and_the_encoder_runs_once(guidance):
    model = build((1, 3, 4), 5, 2, labels=3, guidance=guidance)
    context = torch.cat([torch.tensor([[2], [1], [1]]), torch.randint(5, (3, 12))], 1)
    calls, drawn, seen = [], [], ([], [])
    model.network.encoder[0].register_forward_hook(lambda *_: calls.append(1))
    for source, kept in zip((model, Uncached(model)), seen, strict=True):
        drawn.append(
            model.sampler(
                source,
                12,
                condition=model.condition([2, 0, 1], num=3),
                guidance=guidance,
                noise=Noise(3, torch.arange(3)),
                context=context,
                on_step=lambda step, s, values, prediction, kept=kept: kept.append(prediction.log_x0.softmax(-1)),
            )
        )
        if source is model:
            assert len(calls) == 1
    assert torch.equal(*drawn)
    for a, b in zip(*seen, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_every_scale_position_and_label_matters():
    model = build((1, 2, 2), 4, 2, labels=3)
    x, noisy = torch.randint(4, (1, 4)), torch.randint(4, (1, 4))

    def logits(noisy, scale, label):
        context = torch.cat([torch.tensor([[scale]]), noisy], 1)
        return model.distribution(x, model.condition([label], num=1), context).logits

    base = logits(noisy, 1, 0)
    assert not torch.isclose(base, logits(noisy, 2, 0)).all(-1).any()
    assert not torch.isclose(base, logits(noisy, 1, 1)).all(-1).any()
    for position in range(4):
        changed = noisy.clone()
        changed[0, position] = (changed[0, position] + 1) % 4
        assert not torch.isclose(base, logits(changed, 1, 0)).all(-1).any(), "all tokens see all of the noisier scale"
    changed = x.clone()
    changed[0, 2] = (x[0, 2] + 1) % 4
    x, before = changed, base
    assert torch.equal(logits(noisy, 1, 0)[:, :3], before[:, :3])
    assert not torch.isclose(logits(noisy, 1, 0)[:, 3], before[:, 3]).all()


def test_steps_are_reported_scale_by_scale():
    model, seen = build(T=2), []
    model.sample_codes(Noise(0, torch.arange(1)), 1, on_step=lambda step, s, xs, prediction: seen.append((step, s)))
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"process": MaskAndReplace(3, Linear())}, "take process=uniform"),
        ({"process": Uniform(4, Linear())}, "different numbers of classes: .*'process': 4"),
        ({"codec": Pixels((1, 1, 2))}, "'codec': None"),
        ({"scales": 2}, r"num_steps=3 and network\.num_scales=2"),
        ({"T": 0}, "at least"),
        ({"guidance": ClassifierFree(2.0)}, r"guidance\.scale=1"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_model_is_built(options, said):
    with pytest.raises(UserError, match=said):
        build(**options)
