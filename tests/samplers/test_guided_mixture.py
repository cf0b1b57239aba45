"""Guidance on a mixture of Gaussians, where every score is known in closed form."""

import pytest
import torch

from trilemma.evaluation.oracles.exact import ExactClassifier, MixtureDenoiser
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, CosineBeta, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import ClassifierFree, Guidance
from trilemma.samplers.guided import GuidedDenoiser

MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -0.8]], dtype=torch.float64).view(3, 2, 1, 1)
STDS, WEIGHTS = torch.tensor([0.4, 0.3, 0.2]).double(), torch.tensor([0.3, 0.5, 0.2]).double()
PROCESSES = {
    "linear": GaussianProcess(LinearBeta(100)),
    "cosine": GaussianProcess(CosineBeta(100)),
    "edm": GaussianProcess(EDM()),
    "flow": GaussianProcess(LinearPath()),
}
EACH_PROCESS = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
LABELS = torch.arange(12) % 3


def log_density(process, x, t, labels=None):
    """Log p(xt), or log p(xt | component): of N(alpha m, alpha^2 s^2 + sigma^2), written with torch's own distributions."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    deviations = ((alpha * STDS) ** 2 + sigma**2).sqrt()
    distributions = torch.distributions.Normal(alpha * MEANS.flatten(1), deviations[:, None])
    given = distributions.log_prob(x.flatten(1)[:, None]).sum(-1)
    if labels is not None:
        return given.gather(1, labels[:, None])[:, 0]
    return (given + WEIGHTS.log()).logsumexp(1)


def score(process, x, t, labels=None):
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(process, x, t, labels).sum(), x)
    return gradient


def states(process, t):
    x = torch.randn(12, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x * float(process.alpha(t) + process.sigma(t))


def exact(process):
    return MixtureDenoiser(process, MEANS, STDS, WEIGHTS)


def noise():
    return Noise(0, torch.arange(12))


@EACH_PROCESS
@pytest.mark.parametrize("t", [0.3, 0.5, 0.9])
def test_the_denoiser_is_the_score_and_its_variance_the_jacobian(process, t):
    """Tweedie: x0 = (xt + sigma^2 score) / alpha, and Var[x0|xt] = sigma^2 / alpha * d x0 / d xt."""
    denoiser, x = exact(process), states(process, t)
    for condition, labels in (
        (denoiser.condition(LABELS), LABELS),
        (denoiser.condition(LABELS).null, None),
    ):
        found = denoiser(x, torch.full((12,), t, dtype=torch.float64), condition, noise())
        torch.testing.assert_close(process.score_from_x0(found.x0, x, t), score(process, x, t, labels))

        def x0_of(x, condition=condition):
            return denoiser(x, torch.full((12,), t, dtype=torch.float64), condition, noise()).x0.sum(0).flatten()

        jacobian = torch.autograd.functional.jacobian(x0_of, x)[..., 0, 0]  # [2, 12, 2]
        trace = jacobian.diagonal(dim1=0, dim2=2).sum(-1)
        expected = process.sigma(t) ** 2 / process.alpha(t) * trace / 2
        torch.testing.assert_close(found.x0_variance.flatten(), expected)


@EACH_PROCESS
@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.0, 3.0])
def test_classifier_free_guidance_has_the_closed_form_score(process, scale):
    """(1 - s) score_u + s score_c: x0 and score are affine in one another."""
    t = 0.4
    denoiser, x = exact(process), states(process, t)
    found = GuidedDenoiser(denoiser, process, denoiser.condition(LABELS), ClassifierFree(scale), noise()).predict(x, t)
    expected = (1 - scale) * score(process, x, t) + scale * score(process, x, t, LABELS)
    torch.testing.assert_close(process.score_from_x0(found.x0, x, t), expected)


@EACH_PROCESS
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_exact_classifiers_gradient_is_that_of_its_log_probability(process, scale):
    t = 0.4
    denoiser, x = exact(process), states(process, t)
    found = ExactClassifier(denoiser, scale).gradient(x, t, denoiser.condition(LABELS))
    torch.testing.assert_close(found, scale * (score(process, x, t, LABELS) - score(process, x, t)))


SAMPLERS = {"ddim": DDIM(8), "ddim eta": DDIM(8, eta=0.6), "heun": Heun(8), "dpm_solver": DPMSolver(8)}


def walk(process, sampler, guidance, **options):
    denoiser = exact(process)
    condition = denoiser.condition(LABELS)
    return sampler(denoiser, process, (12, 2, 1, 1), condition=condition, guidance=guidance, noise=noise(), **options)


@EACH_PROCESS
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_with_an_exact_classifier_the_guided_walk_is_the_conditional_one(process, sampler):
    """And at any scale s it is classifier-free guidance of scale s, for samplers that see the score alone.

    From below t = 1, where on the flow's path alpha is 0 and a gradient can say nothing of x0.
    """
    start = {"x_start": states(process, 0.9), "t_start": 0.9}
    for scale, other in ((1.0, Guidance()), (2.5, ClassifierFree(2.5))):
        guided = walk(process, sampler, ExactClassifier(exact(process), scale), **start)
        torch.testing.assert_close(guided, walk(process, sampler, other, **start), rtol=0, atol=1e-9)


@EACH_PROCESS
def test_the_ancestral_walk_moves_its_mean_by_the_variance_times_the_gradient(process):
    for variance in ("small", "large", "optimal"):
        sampler = GaussianAncestral(4, variance=variance)
        t, s = sampler.times(process)[:2]
        first = []
        for guidance in (ExactClassifier(exact(process), 0.0), ExactClassifier(exact(process), 1.5)):
            seen = []
            sampler(
                exact(process),
                process,
                (12, 2, 1, 1),
                condition=exact(process).condition(LABELS),
                guidance=guidance,
                noise=noise(),
                on_step=lambda *step, seen=seen: seen.append(step[2:]),
            )
            first.append(seen[0])
        (plain, prediction), (guided, _) = first
        start = process.prior((12, 2, 1, 1), noise())
        c0, _, beta_tilde = process.posterior_coefficients(s, t)
        var = {"small": beta_tilde, "large": process.transition(s, t)[1]}.get(variance)
        if var is None:
            var = beta_tilde + c0**2 * prediction.x0_variance
        shift = 1.5 * (score(process, start, t, LABELS) - score(process, start, t)) * var
        torch.testing.assert_close(guided - plain, shift)


@pytest.mark.parametrize("clip", [True, False])
def test_what_the_gradient_moves_is_clipped_too(clip):
    """An x0 that is pushed out of the data's range stays at the bound, unless nothing is to be clipped."""
    process = PROCESSES["cosine"]

    class Push(Guidance):
        def __init__(self):
            self.gradient = lambda xt, t, condition: torch.ones_like(xt)

    def denoiser(xt, t, condition, noise):
        return Prediction(x0=torch.full_like(xt, 7.0 if not clip else 0.5), bound=1.0)

    seen = []
    DDIM(5, clip=clip)(
        denoiser,
        process,
        (12, 2, 1, 1),
        condition=exact(process).condition(LABELS),
        guidance=Push(),
        noise=noise(),
        on_step=lambda step, s, xs, prediction: seen.append(prediction.x0),
    )
    for t, x0 in zip(DDIM(5).times(process), seen, strict=False):
        moved = float(process.sigma(t) ** 2 / process.alpha(t))
        expected = min(1.0, 0.5 + moved) if clip else 7.0 + moved
        torch.testing.assert_close(x0, torch.full_like(x0, expected))


def test_where_nothing_of_the_data_is_left_no_gradient_is_asked_for():
    process, asked = PROCESSES["flow"], []

    class Watch(ExactClassifier):
        def _gradient(self, xt, t, condition):
            asked.append(t)
            return super()._gradient(xt, t, condition)

    walk(process, DDIM(4), Watch(exact(process), 1.0))
    assert asked == [0.75, 0.5, 0.25]
