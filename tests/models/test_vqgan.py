"""First stages with a discriminator: the adaptive weight, when the discriminator learns and acts, what is refused."""

import copy

import pytest
import torch
from torch import nn

from tiny_run import trainer_of
from trilemma.codecs.kl import KL
from trilemma.codecs.quantizer import EMAQuantizer
from trilemma.codecs.vq import VQ
from trilemma.errors import UserError
from trilemma.models.autoencoder_kl import AutoencoderKL
from trilemma.models.autoencoder_kl_gan import AutoencoderKLGAN
from trilemma.models.vqgan import VQGAN
from trilemma.models.vqvae import VQVAE
from trilemma.networks.autoencoder import ConvDecoder, ConvEncoder
from trilemma.networks.patch_discriminator import PatchDiscriminator
from trilemma.quiet import quieten
from trilemma.training.adversarial import Hinge, NonSaturating, Relativistic, adaptive_weight
from trilemma.training.adversary import Adversary
from trilemma.training.reconstruction import AbsoluteError

SIDE = 8


def images(num=4, seed=1):
    return torch.rand(num, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def coders(encoded, decoded):
    widths = {"channels": 8, "num_res_blocks": 1}
    encoder = ConvEncoder(in_channels=1, out_channels=encoded, num_downsamples=1, **widths)
    return {
        "image_shape": (1, SIDE, SIDE),
        "encoder": encoder,
        "decoder": ConvDecoder(in_channels=decoded, out_channels=1, num_upsamples=1, **widths),
    }


def vq():
    quantizer = EMAQuantizer(codebook_size=5, dim=4, kmeans_init=False, dead_code_threshold=0.0)
    return VQ(**coders(4, 4), quantizer=quantizer)


def adversary(**options):
    discriminator = PatchDiscriminator(in_channels=1, channels=4, num_halvings=1)
    return Adversary(**{"discriminator": discriminator, "objective": Hinge(), "start": 0, **options})


def adam(named):
    return torch.optim.Adam([p for _, p in named], lr=1e-3)


def vqgan(accumulate=1, **options):
    torch.manual_seed(0)
    return VQGAN(
        codec=vq(),
        reconstruction=AbsoluteError(),
        adversary=adversary(**options),
        optimizer=adam,
        accumulate_grad_batches=accumulate,
    )


def kl_gan(**options):
    torch.manual_seed(0)
    return AutoencoderKLGAN(
        codec=KL(**coders(4, 2)), reconstruction=AbsoluteError(), kl_weight=0.1, adversary=adversary(**options)
    )


# --- the adaptive weight -------------------------------------------------------------------------------------------------


def test_the_adaptive_weight_is_the_ratio_of_gradients_and_undoes_any_scaling():
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64, requires_grad=True)
    x = torch.tensor([2.0, 1.0], dtype=torch.float64)
    error, adversarial = (weight @ x - 1).square().sum(), (weight @ x).sin().sum()
    gradients = [2 * (weight @ x - 1)[:, None] * x, (weight @ x).cos()[:, None] * x]  # by hand
    found = adaptive_weight(error, adversarial, weight, lambda both: both)
    assert found.item() == pytest.approx((gradients[0].norm() / (gradients[1].norm() + 1e-4)).item(), rel=1e-12)
    for scale in (0.1, 7.0, -50.0):
        scaled = adaptive_weight(error, scale * adversarial, weight, lambda both: both)
        assert (scaled * abs(scale)).item() == pytest.approx(found.item(), rel=1e-3)
    assert adaptive_weight(error, 0 * adversarial, weight, lambda both: both) == 1e4


def test_a_discriminator_of_louder_scores_pulls_no_harder():
    """The gradient that reaches the decoder is the same when the last layer of the discriminator is ten times as large."""
    gradients = []
    for factor in (1.0, 10.0):
        model = vqgan()
        nn.init.normal_(model.adversary.discriminator.layers[-1].weight, std=0.5)
        model.adversary.discriminator.layers[-1].weight.data *= factor
        parts = model.generator_loss({"image": images()})
        assert parts.terms["adaptive_weight"] > 0
        parts.total.backward()
        gradients.append(torch.cat([p.grad.flatten() for _, p in model.generator_parameters()]))
    torch.testing.assert_close(*gradients, rtol=5e-3, atol=1e-5)


def test_hinge_is_half_the_margins_and_its_generator_a_mean():
    real, fake = torch.tensor([[2.0, 0.5]]), torch.tensor([[-3.0, 0.0]])
    assert Hinge().discriminator(real, fake).item() == pytest.approx(0.5 * ((0 + 0.5) / 2 + (0 + 1) / 2))
    assert Hinge().generator(None, fake).item() == 1.5


# --- the losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [vqgan, kl_gan])
def test_before_the_start_it_is_its_first_stage(build):
    model = build(start=5).train()
    plain = AutoencoderKL(codec=copy.deepcopy(model.codec), reconstruction=AbsoluteError(), kl_weight=0.1)
    if build is vqgan:
        plain = VQVAE(codec=copy.deepcopy(model.codec), reconstruction=AbsoluteError())
    losses = []
    for family in (model, plain.train()):
        torch.manual_seed(3)
        losses.append(family.loss({"image": images()}))
    assert losses[0].total == losses[1].total
    assert losses[0].terms == losses[1].terms
    assert model.discriminator_loss({"image": images()}) is None


@pytest.mark.parametrize("objective", [Hinge(), NonSaturating(), Relativistic()])
def test_the_loss_is_error_and_regulariser_and_the_weighted_adversarial_loss(objective):
    model = vqgan(objective=objective, weight=0.3).train()
    loss = model.generator_loss({"image": images()})
    terms = loss.terms
    expected = terms["reconstruction"] + terms["commitment"] + 0.3 * terms["adaptive_weight"] * terms["adversarial"]
    torch.testing.assert_close(loss.total, expected)
    model.adversary.adaptive = False
    assert model.generator_loss({"image": images()}).terms["adaptive_weight"] == 1


def test_the_discriminators_turn_moves_no_codebook_and_reaches_the_discriminator_alone():
    model = vqgan().train()
    book = model.codec.quantizer.codebook.clone()
    loss = model.discriminator_loss({"image": images()})
    loss.total.backward()
    assert torch.equal(model.codec.quantizer.codebook, book)
    assert all(p.grad is not None for _, p in model.discriminator_parameters())
    assert all(p.grad is None for _, p in model.generator_parameters())
    assert loss.diagnostics["real_score"].shape == (4,)
    names = [name for name, _ in model.averaged_parameters()]
    assert names
    assert not any("adversary" in name for name in names)


def test_it_judges_what_training_decodes():
    """The reconstruction of the discriminator's turn is that of the generator's, not clipped."""
    model = vqgan().train()
    torch.testing.assert_close(model.redrawn(images()), model.terms(images()).reconstruction)


# --- when it learns and acts ----------------------------------------------------------------------------------------------


class Images:
    """Batches of images."""

    def __init__(self, num):
        self.num = num

    def __len__(self):
        return self.num

    def __iter__(self):
        return ({"image": images(seed=i)} for i in range(self.num))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_start_and_warm_up_are_counted_in_batches(tmp_path, accumulate):
    """Under accumulation too, and although two optimisers count two steps an update."""
    quieten()
    model = vqgan(accumulate, start=6, num_warmup_batches=2)
    seen = []
    update = model._update
    model._update = lambda batches: seen.append((model.num_batches + 1 - len(batches), update(batches))) or seen[-1][1]
    trainer = trainer_of(tmp_path, [], max_steps=10 // accumulate, enable_checkpointing=False, limit_val_batches=0)
    trainer.fit(model, Images(10), Images(1))
    assert [first for first, _ in seen] == list(range(0, 10, accumulate))
    for first, losses in seen:
        assert ("discriminator" in losses) == (first >= 4)
        assert ("adversarial" in losses["generator"].terms) == (first >= 6)


def test_a_warm_up_longer_than_the_start_begins_at_once():
    made = adversary(start=3, num_warmup_batches=9)
    assert made.learns(0)
    assert not made.acts(2)


def test_a_plan_shows_the_update_in_which_it_acts():
    model = vqgan(2, start=5)
    before, after = model.backward_passes()
    assert before[0].loss({"image": images()}) is None
    assert "adversarial" not in before[1].loss({"image": images()}).terms
    assert "adversarial" in after[1].loss({"image": images()}).terms


# --- what is refused ------------------------------------------------------------------------------------------------------


def test_a_discriminator_that_would_never_act_is_refused():
    vqgan(start=9).check_training(num_updates=10, num_images=50)
    vqgan(2, start=19).check_training(num_updates=10, num_images=50)
    with pytest.raises(UserError, match=r"model\.adversary\.start=10: training ends after 10 batches"):
        vqgan(start=10).check_training(num_updates=10, num_images=50)
    kl = kl_gan(start=20)
    kl.accumulate_grad_batches = 2
    with pytest.raises(UserError, match="ends after 20 batches"):
        kl.check_training(num_updates=10, num_images=None)


def test_a_codebook_larger_than_the_tokens_is_refused():
    model = vqgan()
    model.codec.num_classes = 17
    with pytest.raises(UserError, match="17 codes, more than the 16 tokens of 1 training images"):
        model.check_training(num_updates=10, num_images=1)


def test_images_without_a_patch_are_refused():
    with pytest.raises(
        UserError, match=r"images of 8x8 are too small .* lower model\.adversary\.discriminator\.num_halvings"
    ):
        vqgan(discriminator=PatchDiscriminator(in_channels=1, channels=4, num_halvings=2))


@pytest.mark.parametrize("wrong", [{"weight": -1.0}, {"start": -1}, {"num_warmup_batches": -1}])
def test_negative_numbers_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        adversary(**wrong)


def test_a_decoder_must_name_its_last_layer():
    codec = vq()
    codec.decoder = nn.Identity()
    with pytest.raises(UserError, match="a Identity names none"):
        VQGAN(codec=codec, reconstruction=AbsoluteError(), adversary=adversary())
