"""The denoising diffusion GAN: its losses against their definitions, its trajectory, its checkpoint."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.config.build import build
from trilemma.config.targets import CHECKPOINT
from trilemma.errors import UserError
from trilemma.figures.trajectory import noise_then_denoise
from trilemma.models.ddgan import DDGAN
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import VPSDE
from trilemma.processes.noise import Noise, TorchNoise
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.guidance import ClassifierFree, Guidance

T = 4


class Network(nn.Module):
    """G(xt, t, z) = atanh of what is asked for, so that the tanh gives it back; notes its calls."""

    latent_dim = 3

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.calls = []

    def forward(self, x, t, z, pooled=None, context=None, mask=None):
        self.calls.append((x, t, z))
        return torch.atanh(self.scale * self.function(x, t, z))


class Linear(nn.Module):
    """D = w . xs + v . xt + c t."""

    def __init__(self, w=0.0, v=0.0, c=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.as_tensor(w, dtype=torch.float64).expand(1, 4, 4).clone())
        self.v, self.c = v, c
        self.calls = []

    def forward(self, xs, xt, t, pooled=None):
        self.calls.append((xs, xt, t, pooled))
        return (self.w * xs).flatten(1).sum(1) + self.v * xt.flatten(1).sum(1) + self.c * t


def half(x, t, z):
    """Bounded, and a function of all three."""
    return 0.5 * torch.tanh(x + t[:, None, None, None] + z.mean(1)[:, None, None, None])


def toy(function=half, discriminator=None, **options):
    return DDGAN(
        **{
            "codec": Pixels((1, 4, 4)),
            "process": GaussianProcess(VPSDE()),
            "network": Network(function),
            "discriminator": discriminator or Linear(),
            "condition": NoCondition(),
            "discriminator_condition": NoCondition(),
            "sampler": GaussianAncestral(T),
            "guidance": Guidance(),
            "num_timesteps": T,
            **options,
        }
    )


def batch(num=6):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((num, 1, 4, 4), generator=generator, dtype=torch.float64) * 2 - 1
    return {"image": images, "label": torch.arange(num) % 3, "index": torch.arange(num)}


# --- losses -------------------------------------------------------------------------------------------------------------


def test_a_discriminator_that_knows_nothing_loses_2_ln_2():
    model = toy(r1_weight=0.0)
    assert model.discriminator_loss(batch()).total.item() == pytest.approx(2 * math.log(2))
    assert model.generator_loss(batch()).total.item() == pytest.approx(math.log(2))


def test_the_penalty_of_a_linear_discriminator_is_its_squared_slope():
    w = torch.linspace(-1, 2, 16, dtype=torch.float64).view(1, 4, 4)
    model = toy(discriminator=Linear(w, v=5.0, c=3.0), r1_weight=0.3)
    loss = model.discriminator_loss(batch())
    assert loss.terms["r1"].item() == pytest.approx(0.15 * float(w.square().sum()))
    real, fake = loss.diagnostics["real_score"], loss.diagnostics["fake_score"]
    softplus = nn.functional.softplus
    expected = softplus(-real).mean() + softplus(fake).mean() + loss.terms["r1"]
    torch.testing.assert_close(loss.total, expected)
    # Its gradient is that of gamma/2 |w|^2 beside that of the scores.
    loss.terms["r1"].backward()
    torch.testing.assert_close(model.discriminator.w.grad, 0.3 * w)


def test_the_penalty_is_lazy_and_not_rescaled():
    model = toy(discriminator=Linear(1.0), r1_weight=0.3, r1_interval=3, accumulate_grad_batches=2)
    found = []
    for number in range(12):
        model.num_batches = number
        found.append("r1" in model.discriminator_loss(batch()).terms)
    assert found == [True, True, False, False, False, False] * 2
    model.num_batches = 6
    assert model.discriminator_loss(batch()).terms["r1"].item() == pytest.approx(0.15 * 16)


def test_the_losses_are_those_of_the_definition():
    """Recomputed from the states that the discriminator saw: softplus(-D) on data and softplus(D) on samples."""
    model = toy(discriminator=Linear(0.3, v=-0.2, c=0.7), r1_weight=0.0)
    loss = model.discriminator_loss(batch())
    (xs, xt, t, _), (fake_xs, fake_xt, fake_t, _) = model.discriminator.calls
    assert torch.equal(xt, fake_xt)
    assert torch.equal(t, fake_t)
    score = 0.3 * xs.flatten(1).sum(1) - 0.2 * xt.flatten(1).sum(1) + 0.7 * t
    fake = 0.3 * fake_xs.flatten(1).sum(1) - 0.2 * xt.flatten(1).sum(1) + 0.7 * t
    expected = -torch.sigmoid(score).log().mean() - (1 - torch.sigmoid(fake)).log().mean()
    torch.testing.assert_close(loss.total, expected)
    model.discriminator.calls.clear()
    loss = model.generator_loss(batch())
    (xs, xt, t, _) = model.discriminator.calls[0]
    fake = 0.3 * xs.flatten(1).sum(1) - 0.2 * xt.flatten(1).sum(1) + 0.7 * t
    torch.testing.assert_close(loss.total, -torch.sigmoid(fake).log().mean())
    loss.total.backward()
    assert model.network.scale.grad.abs() > 0


def test_steps_of_data_have_the_distribution_of_the_process():
    """At x0 = 0.6: xs and xt have the moments of q(xs|x0) and q(xt|x0), and the covariance alpha_ts sigma_s^2."""
    model = toy(r1_weight=0.0)
    images = torch.full((20000, 1, 4, 4), 0.6, dtype=torch.float64)
    torch.manual_seed(0)
    step = model._forward_step({"image": images}, TorchNoise(), 0.0)
    assert set((step.t * T).tolist()) == {1.0, 2.0, 3.0, 4.0}
    assert torch.equal(step.s, step.t - 1 / T)
    process = model.process
    for i in range(1, T + 1):
        mine = step.t == i / T
        assert float(mine.double().mean()) == pytest.approx(1 / T, abs=0.02)
        s, t = (i - 1) / T, i / T
        xs, xt = step.xs[mine].flatten(), step.xt[mine].flatten()
        for x, time in ((xs, s), (xt, t)):
            assert float(x.mean()) == pytest.approx(0.6 * float(process.alpha(time)), abs=0.02)
            assert float(x.std()) == pytest.approx(float(process.sigma(time)), abs=0.02)
        covariance = float(process.transition(s, t)[0] * process.sigma(s).square())
        assert float(torch.cov(torch.stack([xs, xt]))[0, 1]) == pytest.approx(covariance, abs=0.02)


def test_steps_of_a_generator_that_knows_the_data_have_the_distribution_of_data():
    """xs drawn from q(xs | xt, G) at G = x0: moments of q(xs|x0) and covariance with xt as for data."""
    model = toy(function=lambda x, t, z: torch.full_like(x, 0.6), r1_weight=0.0)
    images = torch.full((20000, 1, 4, 4), 0.6, dtype=torch.float64)
    torch.manual_seed(0)
    step = model._forward_step({"image": images}, TorchNoise(), 0.0)
    drawn = model._drawn(step, TorchNoise()).detach()
    for i in range(1, T + 1):
        mine = step.t == i / T
        data, sample, xt = step.xs[mine].flatten(), drawn[mine].flatten(), step.xt[mine].flatten()
        assert float(sample.mean() - data.mean()) == pytest.approx(0.0, abs=0.02)
        assert float(sample.std() - data.std()) == pytest.approx(0.0, abs=0.02)
        both = [float(torch.cov(torch.stack([x, xt]))[0, 1]) for x in (sample, data)]
        assert both[0] == pytest.approx(both[1], abs=0.02)
    first = step.t == 1 / T
    torch.testing.assert_close(drawn[first], torch.full_like(drawn[first], 0.6))


# --- sampling -----------------------------------------------------------------------------------------------------------


def test_a_sample_takes_t_calls_on_the_trained_grid():
    model = toy()
    images = model.sample(5, seed=3)
    assert images.shape == (5, 1, 4, 4)
    assert [float(t[0]) for _, t, _ in model.network.calls] == [1.0, 0.75, 0.5, 0.25]
    latents = [z for _, _, z in model.network.calls]
    assert all(not torch.equal(a, b) for a, b in pairwise(latents))


def test_the_last_step_gives_what_the_generator_says():
    model = toy(function=lambda x, t, z: torch.full_like(x, -0.25))
    torch.testing.assert_close(model.sample(2), torch.full((2, 1, 4, 4), -0.25))


def test_samples_do_not_depend_on_the_batch():
    model = toy()
    whole = model.sample(7, seed=5)
    torch.testing.assert_close(model.sample(7, seed=5, batch_size=3), whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.sample(2, seed=5, first_index=4), whole[4:6], atol=1e-6, rtol=0)


def test_a_coarser_trajectory_on_the_grid_is_taken():
    model = toy()
    model.sample(1, sampler=GaussianAncestral(2))
    assert [float(t[0]) for _, t, _ in model.network.calls] == [1.0, 0.5]


def test_a_trajectory_off_the_grid_is_refused():
    refusal = r"the times i/4 alone, and the sampler asks for 0\.6667: .*num_steps=4"
    with pytest.raises(UserError, match=refusal):
        toy().sample(1, sampler=GaussianAncestral(3))
    with pytest.raises(UserError, match=refusal):
        toy().check_sampler(GaussianAncestral(3))
    with pytest.raises(UserError, match=refusal):
        toy(sampler=GaussianAncestral(3))


@pytest.mark.parametrize(
    ("asked", "times"),
    [(0.01, [0.25]), (0.2, [0.25]), (0.6, [0.5, 0.25]), (0.8, [0.75, 0.5, 0.25]), (1.0, [1.0, 0.75, 0.5, 0.25])],
)
def test_images_are_noised_to_the_nearest_time_of_the_chain_and_denoised(asked, times):
    model = toy()
    found = noise_then_denoise(model, batch()["image"], asked)
    assert found.shape == (6, 1, 4, 4)
    assert [float(t[0]) for _, t, _ in model.network.calls] == times
    assert model.nearest_time(asked) == times[0]


# --- conditions ---------------------------------------------------------------------------------------------------------


def real_networks(*, condition_dim=None):
    torch.manual_seed(0)
    unet = {
        "_target_": "trilemma.networks.unet.unet.UNet",
        "in_channels": 1,
        "out_channels": 1,
        "image_size": 4,
        "channels": 8,
        "channel_mults": [1],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "scale_shift": True,
        "condition_dim": 6,
    }
    mapping = {
        "_target_": "trilemma.networks.unet.latent_unet.LatentMapping",
        "latent_dim": 5,
        "hidden_dim": 6,
        "out_dim": 6,
    }
    network = {"_target_": "trilemma.networks.unet.latent_unet.LatentUNet", "unet": unet, "mapping": mapping}
    discriminator = {
        "_target_": "trilemma.networks.discriminator.TimeDiscriminator",
        "in_channels": 1,
        "image_size": 4,
        "channels": [4, 4],
        "embedding_dim": 4,
        "condition_dim": condition_dim,
    }
    return network, discriminator


def shaken(model):
    for p in model.parameters():  # a fresh U-Net gives zero
        nn.init.normal_(p, std=0.3)
    return model


def conditional():
    network, discriminator = (build(node) for node in real_networks(condition_dim=5))
    return shaken(
        toy(
            network=network,
            discriminator=discriminator,
            condition=LabelCondition(3, 6),
            discriminator_condition=LabelCondition(3, 5),
            condition_dropout=0.5,
        )
    )


def test_labels_reach_both_networks():
    """Each through an encoder of its own, and dropped for both at once."""
    model, seen = conditional(), []
    model.network.register_forward_pre_hook(lambda _, given: seen.append((model.condition, given[3])))
    model.discriminator.register_forward_pre_hook(
        lambda _, given: seen.append((model.discriminator_condition, given[3]))
    )
    rows = {"image": batch(60)["image"].float(), "label": torch.arange(60) % 3}
    torch.manual_seed(0)
    model.generator_loss(rows).total.backward()
    assert [len(pooled) for _, pooled in seen] == [60, 60]
    kept = []
    for encoder, pooled in seen:
        table = encoder.embedding.weight
        assert table.grad.abs().sum(1).min() > 0
        of_label, null = table[rows["label"]], table[-1]
        kept.append((pooled == of_label).all(1))
        assert (kept[-1] | (pooled == null).all(1)).all()
    assert torch.equal(*kept)
    assert 15 < int(kept[0].sum()) < 45
    images = [model.sample(2, condition=label) for label in (0, 1, None)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_both_branches_of_a_guidance_see_one_latent():
    model, seen = conditional(), []
    model.network.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    model.sample(3, condition=1, guidance=ClassifierFree(2.0))
    assert len(seen) == T
    for z in seen:
        assert torch.equal(z[:3], z[3:])


# --- building and saving ------------------------------------------------------------------------------------------------


def test_it_is_rebuilt_from_its_checkpoint_alone():
    network, discriminator = real_networks()
    node = {
        "_target_": "trilemma.models.ddgan.DDGAN",
        "codec": {"_target_": "trilemma.codecs.pixels.Pixels", "image_shape": [1, 4, 4]},
        "process": {
            "_target_": "trilemma.processes.gaussian.process.GaussianProcess",
            "schedule": {"_target_": "trilemma.processes.gaussian.schedules.VPSDE"},
        },
        "network": network,
        "discriminator": discriminator,
        "condition": {"_target_": "trilemma.conditions.none.NoCondition"},
        "discriminator_condition": {"_target_": "trilemma.conditions.none.NoCondition"},
        "sampler": {"_target_": "trilemma.samplers.gaussian.ancestral.GaussianAncestral", "num_steps": 4},
        "guidance": {"_target_": "trilemma.samplers.guidance.Guidance"},
        "gradient_clip_val": 1.0,
    }
    model, other = (build(node, allowed=CHECKPOINT) for _ in range(2))
    shaken(model)
    assert not torch.equal(model.sample(2), other.sample(2))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.sample(2), other.sample(2))
    names = {name.split(".")[0] for name, _ in model.generator_parameters()}
    assert names == {"network"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"codec": PixelLevels((1, 4, 4), 2)}, "continuous codes"),
        ({"num_timesteps": 0}, "num_timesteps=0"),
        ({"r1_interval": 0}, "r1_interval=0"),
        ({"r1_weight": -1.0}, "r1_weight=-1.0"),
    ],
)
def test_what_does_not_fit_is_refused(options, reason):
    with pytest.raises(UserError, match=reason):
        toy(**options)


def test_the_output_is_bounded_and_times_are_exact():
    model = toy(function=lambda x, t, z: torch.full_like(x, 1 - 1e-12))
    noise = Noise(0, torch.arange(2))
    xt = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    prediction = model.denoise(xt, torch.full((2,), 0.75, dtype=torch.float64), model.condition(None, num=2), noise)
    assert prediction.bound == 1.0
    assert prediction.x0.abs().max() <= 1.0
