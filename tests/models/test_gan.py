"""DCGAN and R3GAN: losses and penalties by hand, options, labels, and a generator that repeats itself."""

import math

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.errors import UserError
from trilemma.models.gan import GAN
from trilemma.networks.dcgan import DCDiscriminator, DCGenerator
from trilemma.networks.r3gan import ResidualDiscriminator, ResidualGenerator
from trilemma.processes.noise import TorchNoise
from trilemma.samplers.guidance import Guidance
from trilemma.training.adversarial import NonSaturating, Relativistic
from trilemma.training.augmentation import DifferentiableAugmentation
from trilemma.training.diagnostics import nearest_in_group

SIDE = 8


class Linear(nn.Module):
    """D = w . x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float64).expand(1, SIDE, SIDE).clone())

    def forward(self, x, pooled=None):
        return (self.w * x).flatten(1).sum(1)


def toy(discriminator=None, **options):
    torch.manual_seed(0)
    return GAN(
        **{
            "codec": Pixels((1, SIDE, SIDE)),
            "network": DCGenerator(latent_dim=3, out_channels=1, image_size=SIDE, channels=[4, 4]).double(),
            "discriminator": discriminator or Linear(0.1),
            "condition": NoCondition(),
            "discriminator_condition": NoCondition(),
            "guidance": Guidance(),
            "objective": NonSaturating(),
            **options,
        }
    )


def batch(num=6):
    images = torch.rand((num, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    return {"image": images, "label": torch.arange(num) % 3, "index": torch.arange(num)}


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_a_penalty_on_a_linear_discriminator_is_its_squared_slope(name):
    w = torch.linspace(-1, 2, SIDE * SIDE, dtype=torch.float64).view(1, SIDE, SIDE)
    model = toy(Linear(w), **{f"{name}_weight": 0.3})
    term = model.discriminator_loss(batch()).terms[name]
    assert term.item() == pytest.approx(0.15 * float(w.square().sum()))
    term.backward()
    torch.testing.assert_close(model.discriminator.w.grad, 0.3 * w)


def test_penalties_are_lazy():
    model = toy(r1_weight=0.3, r2_weight=0.1, penalty_interval=2)
    found = []
    for model.num_batches in range(4):
        found.append(sorted(model.discriminator_loss(batch()).terms))
    assert found == [["r1", "r2"], [], ["r1", "r2"], []]


def test_losses_by_hand():
    real, fake = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 3.0], dtype=torch.float64)

    def nats(*values):
        return pytest.approx(sum(math.log1p(math.exp(value)) for value in values) / 2)

    assert NonSaturating().discriminator(real, fake).item() == nats(-1.0, 2.0, 0.5, 3.0)
    assert NonSaturating().generator(None, fake).item() == nats(-0.5, -3.0)
    assert Relativistic().discriminator(real, fake).item() == nats(-0.5, 5.0)
    assert Relativistic().generator(real, fake).item() == nats(0.5, -5.0)


@pytest.mark.parametrize(("objective", "nats"), [(NonSaturating(), 2 * math.log(2)), (Relativistic(), math.log(2))])
def test_a_constant_discriminator_knows_nothing(objective, nats):
    model = toy(Linear(0.0), objective=objective, r1_weight=1.0, r2_weight=1.0)
    assert model.discriminator_loss(batch()).total.item() == pytest.approx(nats)
    assert model.generator_loss(batch()).total.item() == pytest.approx(math.log(2))


def test_the_weights_of_a_dcgan_begin_as_in_the_paper():
    torch.manual_seed(0)
    net = DCGenerator(latent_dim=50, out_channels=1, image_size=16, channels=[64, 64])
    assert float(net.layers[0].weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert float(net.layers[0].weight.detach().mean()) == pytest.approx(0.0, abs=1e-3)


def test_spectral_normalisation_bounds_the_largest_singular_value():
    torch.manual_seed(0)
    options = {"batch_norm": False, "spectral_norm": True}
    net = DCDiscriminator(in_channels=1, image_size=SIDE, channels=[8, 8], **options)
    for _ in range(30):
        net(torch.randn(2, 1, SIDE, SIDE))
    assert float(torch.linalg.matrix_norm(net.layers[2].weight.flatten(1), 2).detach()) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("image_size", [8, 11, 13, 28])
def test_images_of_any_size_come_out_and_every_pixel_counts(image_size):
    """Grids are halved and rounded up: 28, 14, 7, 4. No pixel is left out where a grid is odd."""
    torch.manual_seed(0)
    sizes = {"image_size": image_size, "channels": [4, 4, 4]}
    for generator, discriminator in ((DCGenerator, DCDiscriminator), (ResidualGenerator, ResidualDiscriminator)):
        images = generator(latent_dim=3, out_channels=2, **sizes)(torch.randn(2, 3))
        assert images.shape == (2, 2, image_size, image_size)
        x = images.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(in_channels=2, **sizes)(x)[0], x)
        assert (gradient[0] != 0).all()


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="28 x 28 cannot be halved 6 times"):
        DCDiscriminator(in_channels=1, image_size=28, channels=[4] * 6)


@pytest.mark.parametrize("kind", ["dcgan", "r3gan"])
def test_labels_reach_both_networks(kind):
    sizes = {"image_size": SIDE, "condition_dim": 5}
    generator, discriminator = {
        "dcgan": (DCGenerator, DCDiscriminator),
        "r3gan": (ResidualGenerator, ResidualDiscriminator),
    }[kind]
    model = toy(
        discriminator(in_channels=1, channels=[4, 4], **sizes).double(),
        network=generator(latent_dim=3, out_channels=1, channels=[4, 4], **sizes).double(),
        condition=LabelCondition(3, 5).double(),
        discriminator_condition=LabelCondition(3, 5).double(),
        objective=Relativistic(),
        r1_weight=0.1,
        condition_dropout=0.0,
    )
    model.generator_loss(batch()).total.backward()
    model.discriminator_loss(batch()).total.backward()
    for encoder in (model.condition, model.discriminator_condition):
        assert encoder.embedding.weight.grad[:3].abs().sum(1).min() > 0
    assert not torch.equal(model.sample(2, condition=0), model.sample(2, condition=1))
    z = torch.zeros(2, model.latent_dim(), dtype=torch.float64)
    assert model.from_latents(z, [0, 1]).shape == (2, 1, SIDE, SIDE)


def test_augmentation_keeps_gradients_and_is_the_identity_where_nothing_is_asked():
    x = batch()["image"].requires_grad_()
    nothing = DifferentiableAugmentation(color=False, translation=0.0, cutout=0.0)
    assert torch.equal(nothing(x, TorchNoise()), x)
    out = DifferentiableAugmentation(color=False)(x, TorchNoise())
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert set(gradient.unique().tolist()) == {0.0, 1.0}, "a pixel is moved or cut, once"
    assert out.sum().item() == pytest.approx((gradient * x).sum().item())


def test_a_generator_that_repeats_itself_is_near():
    x = torch.tensor([0.0, 3.0, 4.0, 10.0, 7.0, 7.0, 7.0, 7.0])[:, None]
    assert nearest_in_group(x).tolist() == [3.0, 1.0, 1.0, 6.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"codec": PixelLevels((1, SIDE, SIDE), 2)}, "continuous codes"),
        ({"r1_weight": -1.0}, "r1_weight=-1.0"),
        ({"penalty_interval": 0}, "penalty_interval=0"),
        ({"condition_dropout": 2.0}, "condition_dropout=2.0"),
    ],
)
def test_what_does_not_fit_is_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        toy(**options)
