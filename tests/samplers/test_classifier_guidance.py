"""Gradient guidance with the exact classifier of a Gaussian mixture, whose conditional and unconditional denoisers are known."""

import math

import pytest
import torch
from torch import nn

from trilemma.conditions.base import Condition
from trilemma.conditions.none import NoCondition
from trilemma.errors import UserError
from trilemma.processes.gaussian.process import GaussianProcess, broadcast_like
from trilemma.processes.gaussian.schedules import EDM, VPSDE, CosineBeta, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.classifier_guidance import ClassifierGuidance
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import ClassifierFree, Guidance

SHARE = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
MEAN = torch.tensor([[-0.8, 0.1], [0.2, 0.6], [0.7, -0.5]], dtype=torch.float64)[:, None, None]  # [K, 1, 1, 2]
STD = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 1, 0, 2, 2, 1])
SHAPE = (8, 1, 1, 2)
PROCESSES = [GaussianProcess(schedule) for schedule in (LinearBeta(), CosineBeta(), VPSDE(), EDM(), LinearPath())]
T_START = 0.9  # where no alpha is zero, so that the state says something of its label


class Exact(nn.Module):
    """p(y | xt) of a mixture of three Gaussians in two dimensions, and what is known of x0."""

    num_labels = 3

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.times = []

    def parts(self, xt, t):
        """log p(y, xt) [B, K] and E[x0 | xt, y] [B, K, 1, 1, 2]."""
        alpha, sigma = (broadcast_like(c, xt)[:, None] for c in (self.process.alpha(t), self.process.sigma(t)))
        s = STD.view(-1, 1, 1, 1)
        variance = alpha.square() * s.square() + sigma.square()
        off = xt[:, None] - alpha * MEAN
        log_joint = SHARE.log() - (0.5 * off.square() / variance + 0.5 * variance.log()).sum((2, 3, 4))
        return log_joint, MEAN + alpha * s.square() / variance * off

    def log_prob(self, xt, t, label):
        self.times.append(float(t[0]))
        log_joint, _ = self.parts(xt, t)
        return log_joint.log_softmax(1).gather(1, label[:, None])[:, 0] + self.bias

    def denoise(self, xt, t, condition, noise):
        """Each image by its label where `pooled` is one, by the whole mixture where it is -1."""
        log_joint, x0 = self.parts(xt, t)
        weight = log_joint.softmax(1)
        if condition.pooled is not None:
            of_label = torch.nn.functional.one_hot(condition.pooled.clamp(min=0), 3).double()
            weight = torch.where(condition.pooled[:, None] < 0, weight, of_label)
        return Prediction(x0=(weight.view(-1, 3, 1, 1, 1) * x0).sum(1))


def draw(exact, sampler, condition, guidance, *, t_start=T_START, **options):
    start = Noise(7, torch.arange(len(condition))).normal((len(condition), *SHAPE[1:]), dtype=torch.float64)
    return sampler(
        exact.denoise,
        exact.process,
        (len(condition), *SHAPE[1:]),
        condition=condition,
        guidance=guidance,
        noise=Noise(3, torch.arange(len(condition))),
        x_start=float(exact.process.sigma(t_start)) * start,
        t_start=t_start,
        **options,
    )


UNCONDITIONAL = Condition(8, label=LABELS)
CONDITIONAL = Condition(8, LABELS, null=Condition(8, torch.full((8,), -1)))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)
@pytest.mark.parametrize(
    "sampler", [DDIM(7), DDIM(7, eta=0.5), Heun(6), DPMSolver(7)], ids=["ddim", "eta", "heun", "dpm"]
)
@pytest.mark.parametrize("scale", [1.0, 2.5, -0.5])
def test_a_trajectory_of_the_unconditional_model_is_that_of_the_guided_score(process, sampler, scale):
    """At scale 1 the conditional trajectory; at any other u + scale (c - u), which classifier-free guidance takes directly."""
    exact = Exact(process)
    guided = draw(exact, sampler, UNCONDITIONAL, ClassifierGuidance(exact, scale))
    free = draw(exact, sampler, CONDITIONAL, ClassifierFree(scale))
    torch.testing.assert_close(guided, free, rtol=0, atol=1e-7 if isinstance(process.schedule, EDM) else 1e-9)
    assert not torch.allclose(guided, draw(exact, sampler, UNCONDITIONAL, Guidance()), atol=1e-2)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_ancestral_mean_moves_by_the_variance_times_the_gradient(process, variance):
    exact = Exact(process)
    sampler = GaussianAncestral(3, variance=variance)
    seen = {}
    for name, guidance in (("plain", Guidance()), ("guided", ClassifierGuidance(exact, 1.7))):
        draw(
            exact, sampler, UNCONDITIONAL, guidance, on_step=lambda step, s, xs, _, n=name: seen.setdefault(n, (s, xs))
        )
    (s, plain), (_, guided) = seen["plain"], seen["guided"]
    xt = float(process.sigma(T_START)) * Noise(7, torch.arange(8)).normal(SHAPE, dtype=torch.float64)
    t = torch.full((8,), T_START, dtype=torch.float64)
    x = xt.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(exact.log_prob(x, t, LABELS).sum(), x)
    _, _, small = process.posterior_coefficients(s, T_START)
    step_variance = small if variance == "small" else process.transition(s, T_START)[1]
    torch.testing.assert_close(guided - plain, 1.7 * step_variance * gradient, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_the_difference_quotient_and_needs_no_autograd_around_it():
    exact = Exact(PROCESSES[0])
    xt = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guidance = ClassifierGuidance(exact, 3.0)
    with torch.no_grad():
        gradient = guidance.gradient(xt, 0.4, UNCONDITIONAL)
    assert not gradient.requires_grad
    assert exact.bias.grad is None
    t = torch.full((8,), 0.4, dtype=torch.float64)
    for i in range(2):
        step = torch.zeros(SHAPE, dtype=torch.float64)
        step[..., i] = 1e-5
        rise = exact.log_prob(xt + step, t, LABELS) - exact.log_prob(xt - step, t, LABELS)
        torch.testing.assert_close(gradient[..., i].flatten(), 3.0 * rise.detach() / 2e-5, rtol=1e-6, atol=1e-8)


def test_an_image_does_not_depend_on_its_batch():
    exact = Exact(PROCESSES[1])
    whole = draw(exact, DDIM(5), UNCONDITIONAL, ClassifierGuidance(exact, 2.0))
    for num in (1, 5):
        part = draw(exact, DDIM(5), Condition(num, label=LABELS[:num]), ClassifierGuidance(exact, 2.0))
        assert torch.equal(part, whole[:num])


def test_scale_zero_is_the_unguided_trajectory_and_calls_nothing():
    exact = Exact(PROCESSES[1])
    for sampler in (DDIM(4), GaussianAncestral(4)):
        plain = draw(exact, sampler, UNCONDITIONAL, Guidance(), t_start=1.0)
        assert torch.equal(draw(exact, sampler, UNCONDITIONAL, ClassifierGuidance(exact, 0.0), t_start=1.0), plain)
        bare = Condition(8)
        assert torch.equal(draw(exact, sampler, bare, ClassifierGuidance(exact, 0.0), t_start=1.0), plain)
    assert exact.times == []


def test_outside_the_interval_the_classifier_is_not_called():
    exact = Exact(PROCESSES[1])
    outside = draw(exact, DDIM(10), UNCONDITIONAL, ClassifierGuidance(exact, 2.0, start=0.55, stop=0.52), t_start=1.0)
    assert exact.times == []
    assert torch.equal(outside, draw(exact, DDIM(10), UNCONDITIONAL, Guidance(), t_start=1.0))
    draw(exact, DDIM(10), UNCONDITIONAL, ClassifierGuidance(exact, 2.0, start=0.75, stop=0.3), t_start=1.0)
    assert exact.times == pytest.approx([0.7, 0.6, 0.5, 0.4, 0.3])


def test_it_runs_one_branch_and_keeps_the_condition():
    assert ClassifierGuidance(Exact(PROCESSES[0]), 2.0).branches(CONDITIONAL, 0.5) == [CONDITIONAL]


def test_it_reads_the_condition_itself():
    guidance = ClassifierGuidance(Exact(PROCESSES[0]), 2.0)
    guidance.check_encoder(NoCondition())
    assert guidance.reads_condition
    assert guidance.examples(5) == [0, 1, 2, 0, 1]
    described = [guidance.describe(raw) for raw in (guidance.examples(5), [1, 1], [2, 0, 2, 0], None)]
    assert described == ["label: all in turn", "label: 1", "label: [2, 0]", "none"]
    assert not Guidance().reads_condition
    assert (Guidance().examples(5), Guidance().describe(None)) == (None, "none")


@pytest.mark.parametrize("raw", [None, ["a three", "a one"], "seven"])
def test_without_labels_there_is_nothing_to_steer_to(raw):
    with pytest.raises(UserError, match=r"guidance=classifier needs condition\.label"):
        ClassifierGuidance(Exact(PROCESSES[0]), 2.0).check(raw)
    with pytest.raises(UserError, match=r"guidance=classifier needs condition\.label"):
        draw(Exact(PROCESSES[0]), DDIM(2), Condition(8), ClassifierGuidance(Exact(PROCESSES[0]), 2.0))


def test_labels_are_the_classifiers():
    guidance = ClassifierGuidance(Exact(PROCESSES[0]), 2.0)
    guidance.check([0, 2])
    with pytest.raises(UserError, match="labels are 0 to 2"):
        guidance.check([0, 3])
    ClassifierGuidance(Exact(PROCESSES[0]), 0.0).check(None)


@pytest.mark.parametrize(
    "options",
    [{"scale": math.nan}, {"scale": math.inf}, {"start": 0.2, "stop": 0.5}, {"start": 1.2}, {"stop": -0.1}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=r"guidance\."):
        ClassifierGuidance(Exact(PROCESSES[0]), **options)


@pytest.mark.parametrize("classifier", [None, "a.ckpt", nn.Linear(2, 2)])
def test_what_is_no_classifier_of_noisy_images_is_refused(classifier):
    with pytest.raises(UserError, match=r"guidance\.classifier=CHECKPOINT"):
        ClassifierGuidance(classifier)
