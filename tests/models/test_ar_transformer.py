"""Autoregressive transformers as families: exact likelihoods, cached sampling, prefixes, truncation."""

import itertools

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.base import Condition, ConditionEncoder
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.models.ar_transformer import ARTransformer
from trilemma.networks.transformer.attention_patterns import Local1D, Local2D
from trilemma.networks.transformer.causal import CausalTransformer
from trilemma.processes.noise import Noise
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import ClassifierFree, Guidance

CAPTIONS = ["abc", "b", "ca"]


class Letters(ConditionEncoder):
    """A caption's letters and their mean; the null is a letter of its own."""

    has_null = True

    def __init__(self):
        super().__init__()
        self.letters, self.pool = nn.Embedding(5, 6), nn.Linear(6, 4)

    def forward(self, raw, *, num, drop=None):
        def embed(captions, **options):
            letters = torch.tensor(
                [["abcn".index(c) for c in caption] + [4] * (3 - len(caption)) for caption in captions]
            )
            tokens, mask = self.letters(letters), letters < 4
            mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return Condition(num, self.pool(mean), tokens, mask, **options)

        null = embed(["n"] * num, is_null=True)
        return null if raw is None else embed(raw, null=null)

    def raw_from(self, batch):
        return batch["caption"]

    def examples(self, num):
        return None

    def describe(self, raw):
        return "letters"

    def check(self, raw):
        pass


def build(image_shape=(1, 3, 4), num_classes=5, *, condition=None, codec=None, attention=None, **options):
    torch.manual_seed(0)
    condition = condition or NoCondition()
    codec = codec or PixelLevels(image_shape, num_classes)
    network = CausalTransformer(
        num_classes=num_classes,
        code_shape=codec.code_shape,
        dim=8,
        depth=2,
        num_heads=2,
        attention=attention,
        condition_dim=None if isinstance(condition, NoCondition) else 4,
        context_dim=6 if isinstance(condition, Letters) else None,
    )
    options = {"sampler": AutoregressiveSampler(), "guidance": Guidance(), **options}
    model = ARTransformer(codec=codec, network=network, condition=condition, **options)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model.double().eval()


def label(**options):
    return build(condition=LabelCondition(3, 4), **options)


def text(**options):
    return build(condition=Letters(), **options)


MODELS = {
    "unconditional": (build, None),
    "label": (label, [2, 0, 1]),
    "label, guided": (lambda: label(guidance=ClassifierFree(2.0)), [2, 0, 1]),
    "text": (text, CAPTIONS),
    "text, guided": (lambda: text(guidance=ClassifierFree(2.0)), CAPTIONS),
    "1-D": (lambda: label(attention=Local1D(3, 2)), [2, 0, 1]),
    "2-D, guided": (lambda: label(attention=Local2D((3, 2), (1, 1)), guidance=ClassifierFree(2.0)), [2, 0, 1]),
    "colours": (lambda: label(image_shape=(3, 2, 2)), [2, 0, 1]),
}


@pytest.mark.parametrize("attention", [None, Local1D(2, 1), Local2D((1, 1), (1, 1)), Local2D((1, 2), (1, 0))])
@pytest.mark.parametrize("image_shape", [(1, 2, 2), (3, 1, 2)])
def test_the_likelihoods_of_all_binary_images_sum_to_one(image_shape, attention):
    model = build(image_shape, 2, attention=attention)
    num = model.num_positions
    images = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=num))).double().view(-1, *image_shape)
    likelihood = model.score_likelihood({"image": images, "index": torch.arange(len(images))})
    assert (likelihood.kind, likelihood.unit, likelihood.num_dims) == ("exact", "subpixel", num)
    torch.testing.assert_close((-likelihood.nats).exp().sum().item(), 1.0, rtol=0, atol=1e-12)


class Uncached:
    """The same model by whole passes: every position's distribution out of a pass over all tokens so far."""

    def __init__(self, model):
        self.model = model

    def start(self, condition, context=None):
        return condition, torch.empty(len(condition), 0, dtype=torch.int64)

    def step(self, token, state):
        condition, tokens = state
        tokens = tokens if token is None else torch.cat([tokens, token[:, None]], 1)
        rest = torch.zeros(len(tokens), self.model.num_positions - tokens.shape[1], dtype=torch.int64)
        logits = self.model.distribution(torch.cat([tokens, rest], 1), condition).logits
        return Categorical(logits[:, tokens.shape[1]]), (condition, tokens)


@pytest.mark.parametrize("name", MODELS)
def test_cached_tokens_are_the_uncached_ones_and_their_distributions_agree(name):
    build_model, raw = MODELS[name]
    model, seen = build_model(), {"cached": [], "whole": []}
    drawn = [
        model.sampler(
            source,
            model.num_positions,
            condition=model.condition(raw, num=3),
            guidance=model.guidance,
            noise=Noise(3, torch.arange(3)),
            on_step=lambda step, s, values, prediction, kept=seen[key]: kept.append(prediction.log_x0.softmax(-1)),
        )
        for key, source in (("cached", model), ("whole", Uncached(model)))
    ]
    assert torch.equal(*drawn)
    assert len(drawn[0].unique(dim=0)) == 3
    for a, b in zip(seen["cached"], seen["whole"], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_an_image_is_completed_from_its_first_tokens():
    model = label()
    condition = model.condition([2, 0, 1], num=3)
    whole = model.sample_codes(Noise(3, torch.arange(3)), 3, [2, 0, 1])
    noise = Noise(3, torch.arange(3))
    for _ in range(5):  # what the first five were drawn from
        noise.uniform((3,), torch.float64)
    rest = model.sampler(model, 7, condition=condition, guidance=model.guidance, noise=noise, context=whole[:, :5])
    assert torch.equal(rest, whole[:, 5:])


def test_images_are_the_same_ones_in_whatever_order_they_are_drawn():
    model = build((1, 4, 4), 256, attention=Local2D((2, 2), (1, 1)))
    images = (torch.rand(3, 1, 4, 4).double() * 255).round() / 127.5 - 1
    x = model.sequence({"image": images, "index": torch.arange(3)}, Noise(0, torch.arange(3)))
    torch.testing.assert_close(model.decode(x).double(), images, rtol=0, atol=1e-6)
    assert torch.equal(x[:, :4], model.codec.encode(images)[:, :2, :2].flatten(1))


def test_conditions_matter_and_the_null_is_another():
    for model, raws in ((label(), ([0, 0], [1, 1], None)), (text(), (CAPTIONS[:2], CAPTIONS[1:], None))):
        x = torch.randint(5, (2, 12))
        logits = [model.distribution(x, model.condition(raw, num=2)).logits for raw in raws]
        assert not any(torch.allclose(a, b) for a, b in itertools.combinations(logits, 2))


@pytest.mark.parametrize(
    "options", [{"top_k": 2}, {"top_p": 0.6}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 3, "top_p": 0.8}]
)
def test_draws_are_those_of_a_brute_force_with_top_k_and_top_p(options):
    """All 64 sequences of 3 tokens, enumerated, against the shares of 20,000 draws."""
    model = build((1, 1, 3), 4)
    sequences = torch.tensor(list(itertools.product(range(4), repeat=3)))
    logits = model.distribution(sequences, model.condition(None, num=64)).logits
    expected = torch.ones(64, dtype=torch.float64)
    for row, sequence in enumerate(sequences):
        for position, token in enumerate(sequence):
            p = (logits[row, position] / options.get("temperature", 1.0)).softmax(-1).tolist()
            ranked = sorted(range(4), key=lambda k: -p[k])[: options.get("top_k", 4)]
            total, kept, mass = sum(p[k] for k in ranked), [], 0.0
            for k in ranked:
                if mass < options.get("top_p", 1.0) * total:
                    kept.append(k)
                mass += p[k]
            expected[row] *= p[token] / sum(p[k] for k in kept) if int(token) in kept else 0.0
    torch.testing.assert_close(expected.sum().item(), 1.0)
    num = 20_000
    sampler = AutoregressiveSampler(**options)
    drawn = model.sample_codes(Noise(0, torch.arange(num)), num, sampler=sampler)
    counts = (drawn @ torch.tensor([16, 4, 1])).bincount(minlength=64)
    possible = expected > 0
    assert not counts[~possible].any()
    likely = expected * num > 5
    chi2 = ((counts - expected * num).square() / (expected * num))[likely].sum().item()
    degrees = int(likely.sum()) - 1
    assert chi2 < degrees + 4 * (2 * max(degrees, 1)) ** 0.5


def test_the_loss_drops_conditions():
    model = label(condition_dropout=1.0)
    batch = {
        "image": torch.rand(4, 1, 3, 4).double() * 2 - 1,
        "label": torch.tensor([0, 1, 2, 0]),
        "index": torch.arange(4),
    }
    null = model.distribution(model.sequence(batch, model.training_noise()), model.condition(None, num=4))
    x = model.sequence(batch, model.training_noise())
    torch.testing.assert_close(model.loss(batch).total, -null.log_prob(x).mean())


@pytest.mark.parametrize(
    ("build_model", "said"),
    [
        (lambda: build(num_classes=2, codec=Pixels((1, 3, 3))), "None classes and the network 2"),
        (lambda: build(num_classes=2, codec=PixelLevels((1, 4, 4), 3)), "3 classes and the network 2"),
        (lambda: build(guidance=ClassifierFree(2.0)), r"guidance=none, or guidance\.scale=1"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_model_is_built(build_model, said):
    with pytest.raises(UserError, match=said):
        build_model()
