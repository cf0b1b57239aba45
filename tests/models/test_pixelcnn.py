"""PixelCNN and PixelCNN++ as families: exact likelihoods, and cached sampling against whole forward passes."""

import itertools

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.distributions.categorical import Categorical
from trilemma.errors import UserError
from trilemma.models.pixelcnn import PixelCNN
from trilemma.models.pixelcnn_pp import PixelCNNPlusPlus
from trilemma.networks.pixelcnn.gated import GatedPixelCNN
from trilemma.networks.pixelcnn.plus_plus import PixelCNNPlusPlus as PlusPlusNetwork
from trilemma.processes.noise import Noise
from trilemma.samplers.autoregressive import AutoregressiveSampler
from trilemma.samplers.guidance import ClassifierFree, Guidance


def awake(model):
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    return model.double().eval()


def pixelcnn(image_shape, num_classes, *, labels=None, codec=None, **options):
    codec = codec or PixelLevels(image_shape, num_classes)
    network = GatedPixelCNN(
        num_classes=num_classes,
        code_shape=codec.code_shape,
        channels=6,
        depth=2,
        head_channels=6,
        condition_dim=labels and 4,
    )
    options = {"sampler": AutoregressiveSampler(), "guidance": Guidance(), **options}
    condition = LabelCondition(labels, 4) if labels else NoCondition()
    return awake(PixelCNN(codec=codec, network=network, condition=condition, **options))


def plus_plus(image_shape, *, labels=None, codec=None, **options):
    network = PlusPlusNetwork(
        in_channels=image_shape[0],
        image_size=image_shape[1],
        channels=4,
        num_blocks=1,
        num_levels=2,
        num_components=2,
        condition_dim=labels and 4,
    )
    options = {"sampler": AutoregressiveSampler(), "guidance": Guidance(), **options}
    condition = LabelCondition(labels, 4) if labels else NoCondition()
    return awake(PixelCNNPlusPlus(codec=codec or Pixels(image_shape), network=network, condition=condition, **options))


def likelihood_of(model, images):
    return model.score_likelihood({"image": images, "index": torch.arange(len(images))})


@pytest.mark.parametrize(("image_shape", "num"), [((1, 2, 2), 16), ((3, 1, 2), 64)])
def test_the_likelihoods_of_all_binary_images_sum_to_one(image_shape, num):
    model = pixelcnn(image_shape, 2)
    images = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=num.bit_length() - 1))).double()
    likelihood = likelihood_of(model, images.view(num, *image_shape))
    assert (likelihood.kind, likelihood.unit, likelihood.num_dims) == ("exact", "subpixel", num.bit_length() - 1)
    torch.testing.assert_close((-likelihood.nats).exp().sum().item(), 1.0, rtol=0, atol=1e-12)


def test_the_levels_of_every_pixel_sum_to_one_in_plus_plus():
    """Given the pixels before it, whatever those after it: an image's likelihood is a product of such sums."""
    model = plus_plus((1, 2, 2))
    levels = torch.arange(256).double() / 127.5 - 1
    for pixel in range(4):
        images = levels[torch.randint(256, (1, 4))].repeat(256, 1)
        images[:, pixel] = levels
        images[:, pixel + 1 :] = levels[torch.randint(256, (256, 3 - pixel))]
        images = images.view(256, 1, 2, 2)
        log_prob = model.distribution(images, model.condition(None, num=256)).log_prob(images).flatten(1)
        torch.testing.assert_close(log_prob[:, pixel].exp().sum().item(), 1.0, rtol=0, atol=1e-9)


def uncached(model):
    """The same model, its network given no cache: a forward pass of the whole grid at every position."""
    forward = model.network.forward

    def whole(x, pooled=None, *, cache=None, pixel=None):
        out = forward(x, pooled)
        return out if pixel is None else out[..., pixel[0] : pixel[0] + 1, pixel[1] : pixel[1] + 1]

    model.network.forward = whole
    return model


MODELS = {
    "tokens": lambda: pixelcnn((1, 4, 5), 5, labels=3, guidance=ClassifierFree(2.0)),
    "colours": lambda: pixelcnn((3, 4, 3), 4, labels=3),
    "plus_plus": lambda: plus_plus((3, 8, 8), labels=3),
    "plus_plus, grey": lambda: plus_plus((1, 8, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_cached_samples_are_the_uncached_ones_position_by_position(name):
    model = MODELS[name]()
    raw = None if "grey" in name else [2, 0, 1]
    drawn = [m.sample_codes(Noise(3, torch.arange(3)), 3, raw) for m in (model, uncached(MODELS[name]()))]
    assert drawn[0].shape[:2] == (3, model.num_positions)
    assert torch.equal(*drawn)
    assert len(drawn[0].flatten(1).unique(dim=0)) == 3


@pytest.mark.parametrize("name", MODELS)
def test_steps_say_what_all_positions_say_at_once(name):
    model = MODELS[name]()
    raw = None if "grey" in name else [2, 0, 1]
    codes = model.sample_codes(Noise(4, torch.arange(3)), 3, raw)
    condition = model.condition(raw, num=3)
    batch = {"image": model.decode(codes), "index": torch.arange(3)}
    at_once = model.distribution(model.sequence(batch, Noise(0, torch.arange(3))), condition)
    at_once = at_once.log_prob(model.sequence(batch, Noise(0, torch.arange(3)))).flatten(1).sum(1)
    state, token, total = model.start(condition), None, 0.0
    for token_after in codes.unbind(1):
        distribution, state = model.step(token, state)
        total = total + distribution.log_prob(token_after).reshape(3, -1).sum(1)
        token = token_after
    torch.testing.assert_close(total, at_once, rtol=0, atol=1e-9)


def test_a_label_matters_and_the_null_is_another():
    model = MODELS["tokens"]()
    x = torch.randint(5, (2, 20))
    conditions = [model.condition(raw, num=2) for raw in ([0, 0], [1, 1], None)]
    logits = [model.distribution(x, condition).logits for condition in conditions]
    assert isinstance(model.distribution(x, conditions[0]), Categorical)
    assert not any(torch.allclose(a, b) for a, b in itertools.combinations(logits, 2))


def test_binarisation_is_drawn_anew_in_training_and_fixed_in_validation():
    model = pixelcnn((1, 4, 4), 2, codec=PixelLevels((1, 4, 4), 2, stochastic=True))
    batch = {"image": torch.zeros(8, 1, 4, 4), "index": torch.arange(8)}
    drawn = [model.sequence(batch, model.training_noise()) for _ in range(2)]
    assert not torch.equal(*drawn)
    assert torch.equal(model.score_likelihood(batch).nats, model.score_likelihood(batch).nats)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: pixelcnn((1, 3, 3), None, codec=Pixels((1, 3, 3))), "model=pixelcnn_pp"),
        (lambda: pixelcnn((1, 3, 3), 2, codec=Pixels((1, 3, 3))), "None classes and the network 2"),
        (lambda: pixelcnn((1, 4, 4), 2, codec=PixelLevels((1, 4, 4), 3)), "3 classes and the network 2"),
        (lambda: plus_plus((1, 4, 4), codec=PixelLevels((1, 4, 4), 256)), "take codec=pixels"),
        (lambda: plus_plus((1, 4, 4), labels=3, guidance=ClassifierFree(2.0)), "take guidance.scale=1"),
        (lambda: plus_plus((1, 4, 4), sampler=AutoregressiveSampler(top_k=3)), "take sampler.temperature alone"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_the_model_is_built(build, said):
    with pytest.raises(UserError, match=said):
        build()
