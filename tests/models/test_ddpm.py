"""The DDPM family: its losses against their definitions, its samples, its refusals."""

import math

import pytest
import torch
from torch import nn

from trilemma.capabilities import supports
from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.conditions.label import LabelCondition
from trilemma.conditions.none import NoCondition
from trilemma.errors import UserError
from trilemma.models.capabilities import Reconstructs, Samples, ScoresLikelihood
from trilemma.models.ddpm import DDPM
from trilemma.networks.unet.unet import UNet
from trilemma.processes.gaussian.bound import discretised_log_prob
from trilemma.processes.gaussian.parameterization import X0, EDMPreconditioning, Eps, Score, V, Velocity
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, CosineBeta, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.training.loss_weights import MinSNR, Simple, SoftMinSNR
from trilemma.training.timesteps import ChainTimesteps, ImportanceTimesteps, LogNormalTimesteps, UniformTimesteps
from trilemma.training.x0_error import X0Error

T, SIDE = 20, 4


def network(*, condition_dim=None, learn_variance=False):
    net = UNet(
        in_channels=1,
        out_channels=1,
        image_size=SIDE,
        channels=8,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        scale_shift=True,
        condition_dim=condition_dim,
        learn_variance=learn_variance,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():  # a zero head knows nothing: give it opinions
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return net


def model_of(*, dtype=torch.float32, labels=False, **changes):
    torch.manual_seed(0)
    learned = changes.get("variance") == "learned"
    arguments = {
        "codec": Pixels((1, SIDE, SIDE)),
        "process": GaussianProcess(CosineBeta(T)),
        "network": network(condition_dim=8 if labels else None, learn_variance=learned),
        "condition": LabelCondition(3, 8) if labels else NoCondition(),
        "sampler": DDIM(5),
        "guidance": ClassifierFree(2.0) if labels else Guidance(),
        "parameterization": Eps(),
        "times": ChainTimesteps(T),
        "weight": Simple(),
        **changes,
    }
    return DDPM(**arguments).to(dtype)


def batch_of(num=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(256, (num, 1, SIDE, SIDE), generator=generator)
    return {"image": levels.to(dtype) / 127.5 - 1, "label": torch.arange(num) % 3, "index": torch.arange(num)}


class Answers(nn.Module):
    """A network that says whatever it is told to."""

    learn_variance = False

    def __init__(self, answer):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.answer = answer

    def forward(self, x, t, pooled=None, context=None, mask=None):
        return self.scale * self.answer(x, t)


@pytest.mark.parametrize("meaning", [Eps(), X0(), V(), Score()], ids=lambda m: type(m).__name__)
def test_a_network_that_is_right_has_no_loss(meaning):
    """All data are 0.5: what was added is known from xt."""
    process = GaussianProcess(CosineBeta(T))
    data = 0.5

    def answer(x, t):
        x0 = torch.full_like(x, data)
        return meaning.target(process, x0, process.eps_from_x0(x0, x, t), t)

    model = model_of(process=process, network=Answers(answer), parameterization=meaning, dtype=torch.float64)
    batch = {"image": torch.full((8, 1, SIDE, SIDE), data, dtype=torch.float64), "index": torch.arange(8)}
    assert float(model.loss(batch).total.detach()) == pytest.approx(0.0, abs=1e-18)
    drawn = model.denoise(
        torch.randn(2, 1, SIDE, SIDE, dtype=torch.float64), torch.tensor([0.5, 0.5]), model.condition(None, num=2), None
    )
    torch.testing.assert_close(drawn.x0, torch.full_like(drawn.x0, data))


def test_the_simple_loss_of_a_silent_network_is_the_power_of_its_target():
    torch.manual_seed(0)
    model = model_of(network=Answers(lambda x, t: 0 * x), dtype=torch.float64)
    total = sum(float(model.loss(batch_of(64, torch.float64)).total.detach()) for _ in range(20)) / 20
    assert total == pytest.approx(1.0, abs=0.03)  # eps has unit variance


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [
        (Eps(), lambda snr, w: w / snr),
        (X0(), lambda snr, w: w),
        (V(), lambda snr, w: w / (snr + 1)),
    ],
    ids=["eps", "x0", "v"],
)
@pytest.mark.parametrize(
    ("weight", "of_x0"),
    [(MinSNR(5.0), lambda snr: snr.clamp(max=5.0)), (SoftMinSNR(4.0), lambda snr: 4 * snr / (4 + snr))],
    ids=["min", "soft"],
)
def test_min_snr_weights_are_those_of_the_paper(meaning, expected, weight, of_x0):
    """Hang et al. 2023, section 3.4: min(SNR, gamma) on x0 is / SNR on eps and / (SNR + 1) on v."""
    process = GaussianProcess(LinearBeta())
    t = torch.tensor([0.001, 0.1, 0.5, 1.0], dtype=torch.float64)
    snr = process.log_snr(t).exp()
    torch.testing.assert_close(weight(process, meaning, t), expected(snr, of_x0(snr)))


def test_soft_min_snr_under_edm_is_that_of_k_diffusion():
    """(sigma sigma_d)^2 / (sigma^2 + sigma_d^2)^2 on the output F."""
    process, data = GaussianProcess(EDM()), 0.5
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    sigma = process.sigma(t)
    found = SoftMinSNR(1 / data**2)(process, EDMPreconditioning(data), t)
    torch.testing.assert_close(found, (sigma * data) ** 2 / (sigma**2 + data**2) ** 2)


def test_the_loss_under_edm_is_the_weighted_denoising_error():
    """Karras et al. 2022, equation 2 and table 1: lambda |D - x0|^2 = |F - target|^2."""
    process, data = GaussianProcess(EDM()), 0.5
    meaning = EDMPreconditioning(data)
    generator = torch.Generator().manual_seed(0)
    x0, eps, F = torch.randn(3, 5, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.linspace(0.2, 1, 5, dtype=torch.float64)
    xt = process.perturb(x0, t, eps)
    sigma = process.sigma(t).view(-1, 1, 1, 1)
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    error = weight * (meaning.to_x0(process, F, xt, t) - x0).square()
    torch.testing.assert_close((F - meaning.target(process, x0, eps, t)).square(), error)


def test_the_hybrid_loss_trains_the_mean_by_the_squared_error_alone():
    """Equal gradients of the mean's weights with and without the bound; the variance's come from the bound."""
    grads = []
    for objective, variance in (("simple", "large"), ("hybrid", "learned")):
        model = model_of(objective=objective, variance=variance, dtype=torch.float64)
        head = nn.Conv2d(1, 2, 1).double()
        with torch.no_grad():
            head.weight.copy_(torch.tensor([0.3, 0.2]).view(2, 1, 1, 1))
            head.bias.zero_()

        class Two(nn.Module):
            learn_variance = variance == "learned"

            def __init__(self, head):
                super().__init__()
                self.head = head

            def forward(self, x, t, pooled, context, mask):
                out = self.head(x)
                return out if self.learn_variance else out[:, :1]

        model.network = Two(head)
        torch.manual_seed(3)
        model.loss(batch_of(dtype=torch.float64)).total.backward()
        grads.append(head.weight.grad.flatten())
    torch.testing.assert_close(grads[0][0], grads[1][0])
    assert float(grads[0][1]) == 0.0
    assert float(grads[1][1].abs()) > 0.0


def test_the_bound_of_the_last_step_is_the_price_of_the_levels():
    """At t = 1/T the term is -log p of the discretised Gaussian; here recomputed from the denoiser."""
    model = model_of(variance="small", dtype=torch.float64)
    x0 = batch_of(dtype=torch.float64)["image"]
    t = torch.full((len(x0),), 1 / T, dtype=torch.float64)
    terms = model._terms(x0, t, model.condition(None, num=len(x0)), Noise(0, torch.arange(len(x0))), s=0 * t)
    eps = Noise(0, torch.arange(len(x0))).normal(tuple(x0.shape), dtype=torch.float64)
    xt = model.process.perturb(x0, t, eps)
    mean = model.denoise(xt, t, model.condition(None, num=len(x0)), None).x0
    log_std = 0.5 * model.process.log_variance_range(0.0, 1 / T)[0]
    expected = -discretised_log_prob(x0, mean, log_std, 2 / 255).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(terms.bound, expected)


def test_the_likelihood_is_the_sum_of_its_terms_and_a_bound():
    model = model_of(variance="learned", objective="hybrid", dtype=torch.float64)
    batch = batch_of(dtype=torch.float64)
    score = model.score_likelihood(batch, seed=3)
    x0, condition, noise = batch["image"], model.condition(None, num=6), Noise(3, batch["index"])
    expected = model.process.prior_kl(x0).flatten(1).sum(1)
    for i in range(1, T + 1):
        t = torch.full((6,), i / T, dtype=torch.float64)
        expected = expected + model._terms(x0, t, condition, noise, s=t - 1 / T).bound * math.log(2) * SIDE**2
    torch.testing.assert_close(score.nats, expected.detach())
    assert (score.kind, score.unit, score.num_dims) == ("bound", "subpixel", SIDE**2)


@pytest.mark.parametrize(
    "changes",
    [
        {"parameterization": V(), "sampler": GaussianAncestral(7, variance="optimal")},
        {"labels": True},
        {"variance": "learned", "objective": "hybrid", "sampler": GaussianAncestral(7, variance="learned")},
        {"process": GaussianProcess(LinearPath()), "parameterization": Velocity(), "times": UniformTimesteps()},
    ],
    ids=["optimal", "guided", "learned", "flow"],
)
def test_samples_do_not_depend_on_the_batch_size(changes):
    model = model_of(dtype=torch.float64, **changes)
    condition = [i % 3 for i in range(16)] if "labels" in changes else None
    whole = model.sample(16, condition=condition, batch_size=16)
    assert len(torch.unique(whole.flatten(1), dim=0)) == 16
    for batch_size in (1, 5):
        torch.testing.assert_close(
            model.sample(16, condition=condition, batch_size=batch_size), whole, rtol=0, atol=1e-9
        )
    torch.testing.assert_close(
        model.sample(3, condition=condition and condition[4:7], first_index=4), whole[4:7], rtol=0, atol=1e-9
    )


def test_every_kind_of_model_trains_downhill():
    """A few steps on one batch: the loss falls under each objective and parameterisation."""
    for changes in (
        {"parameterization": V(), "weight": MinSNR()},
        {"variance": "learned", "objective": "bound", "times": ImportanceTimesteps(T, min_count=1)},
        {"variance": "learned", "objective": "hybrid"},
        {"process": GaussianProcess(EDM()), "parameterization": EDMPreconditioning(0.6), "times": LogNormalTimesteps()},
        {"process": GaussianProcess(LinearPath()), "parameterization": Velocity(), "times": UniformTimesteps()},
    ):
        model = model_of(**changes)
        optimizer = torch.optim.Adam(model.network.parameters(), lr=3e-3)
        losses = []
        for _ in range(60):
            torch.manual_seed(0)  # the same times and noise
            loss = model.loss(batch_of()).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.7 * losses[0], changes


def test_the_error_of_x0_becomes_the_posterior_variance():
    """Of normal data under the exact denoiser: s^2 sigma^2 / (alpha^2 s^2 + sigma^2)."""
    process, std = GaussianProcess(CosineBeta()), 0.5
    error, generator = X0Error(10, decay=0.9), torch.Generator().manual_seed(0)
    t = torch.rand(400_000, generator=generator, dtype=torch.float64).clamp(min=1e-3)
    alpha, var = process.alpha(t), process.sigma(t).square()
    exact = std**2 * var / (alpha.square() * std**2 + var)
    error.update(process, t, exact * torch.randn(len(t), generator=generator, dtype=torch.float64).square())
    at = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    expected = std**2 * process.sigma(at) ** 2 / (process.alpha(at) ** 2 * std**2 + process.sigma(at) ** 2)
    torch.testing.assert_close(error.variance(process, at), expected, rtol=0.06, atol=0)


def test_the_validation_covers_every_timestep(monkeypatch):
    model = model_of()
    monkeypatch.setattr(model, "log", lambda *args, **options: None)
    out = model.validation_step(batch_of(T), 0)["diagnostics"]
    assert torch.equal(out["time"].mul(T).round().long().sort().values, torch.arange(1, T + 1))
    assert out["time_loss"].shape == (T,)


def test_what_a_model_can_do_follows_from_its_codec():
    """Pixels come back as they went in, so there is nothing to reconstruct; only pixels have levels to score."""

    class Latents(Pixels):
        bound = None

        def __init__(self):
            super().__init__((1, SIDE, SIDE))
            self.map = nn.Conv2d(1, 1, 1)

    pixels, latents = model_of(), model_of(codec=Latents())
    assert supports(pixels, ScoresLikelihood)
    assert not supports(pixels, Reconstructs)
    assert supports(latents, Reconstructs)
    assert not supports(latents, ScoresLikelihood)
    assert supports(pixels, Samples)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codec": PixelLevels((1, SIDE, SIDE), 256)}, "continuous codes"),
        ({"objective": "hybrid"}, "only the bound trains a variance"),
        ({"variance": "learned"}, "only the bound trains a variance"),
        ({"variance": "learned", "objective": "hybrid", "network": network()}, "network.learn_variance=false"),
        ({"times": ChainTimesteps(7)}, "make them equal"),
        ({"objective": "bound", "times": UniformTimesteps()}, "take model/times=chain"),
        ({"process": GaussianProcess(LinearPath()), "times": UniformTimesteps()}, "take v, velocity or x0"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_one_line(changes, said):
    with pytest.raises(UserError, match=said):
        model_of(**changes)


@pytest.mark.parametrize(
    ("zero_terminal_snr", "weight"), [(True, MinSNR()), (True, SoftMinSNR()), (False, MinSNR()), (True, Simple())]
)
def test_a_weight_that_leaves_out_the_start_of_sampling_is_warned_of(zero_terminal_snr, weight, recwarn):
    process = GaussianProcess(LinearBeta(1000, zero_terminal_snr=zero_terminal_snr))
    model_of(process=process, parameterization=V(), weight=weight, times=ChainTimesteps(1000)).on_fit_start()
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (zero_terminal_snr and not isinstance(weight, Simple))
    assert all("is 0 at t = 1" in line for line in said)
