"""What every sampler of a Gaussian process keeps to."""

import itertools

import pytest
import torch

from trilemma.conditions.base import Condition
from trilemma.errors import UserError
from trilemma.processes.categorical.closed_form import Absorbing
from trilemma.processes.categorical.schedules import Cosine
from trilemma.processes.gaussian.process import GaussianProcess
from trilemma.processes.gaussian.schedules import EDM, CosineBeta, LinearBeta, LinearPath
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.gaussian.ancestral import GaussianAncestral
from trilemma.samplers.gaussian.ddim import DDIM
from trilemma.samplers.gaussian.dpm_solver import DPMSolver
from trilemma.samplers.gaussian.heun import Heun
from trilemma.samplers.guidance import ClassifierFree, Guidance

SHAPE = (2, 3, 3)
CHAIN, TERMINAL = GaussianProcess(CosineBeta(100)), GaussianProcess(LinearBeta(100, zero_terminal_snr=True))
EDM_, FLOW = GaussianProcess(EDM()), GaussianProcess(LinearPath())
PROCESSES = [CHAIN, TERMINAL, EDM_, FLOW]
SAMPLERS = [
    *(GaussianAncestral(5, variance=v) for v in ("small", "large", "learned", "optimal")),
    DDIM(5),
    DDIM(5, eta=0.7),
    Heun(5),
    Heun(5, order=1),
    DPMSolver(5),
    DPMSolver(5, order=1),
]
NAMES = ["small", "large", "learned", "optimal", "ddim", "ddim eta", "heun", "euler", "dpm 2", "dpm 1"]
EACH_SAMPLER = pytest.mark.parametrize("sampler", SAMPLERS, ids=NAMES)
EACH_PROCESS = pytest.mark.parametrize("process", PROCESSES, ids=["cosine", "zero terminal", "edm", "flow"])


class Denoiser:
    """A fixed smooth function of (xt, t, condition), image by image, in float64, that mixes the dimensions."""

    def __init__(self, scale=1.0, **fields):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(18, 18, dtype=torch.float64, generator=generator) / 4
        self.scale = scale
        self.fields = fields
        self.calls = []

    def __call__(self, xt, t, condition, noise):
        assert xt.dtype == t.dtype == torch.float64
        self.calls.append((len(xt), t))
        hidden = xt.flatten(1) @ self.weight + torch.sin(7 * t)[:, None]
        if condition.pooled is not None:
            hidden = hidden + condition.pooled.double()[:, :1]
        x0 = self.scale * torch.tanh(hidden).view(xt.shape)
        fraction = torch.sigmoid(hidden).view(xt.shape)
        return Prediction(
            x0=x0, variance_fraction=fraction, x0_variance=0.1 * x0.square().mean((1, 2, 3), True), **self.fields
        )


def condition(indices):
    pooled = (indices.double() % 4 - 1.5)[:, None].expand(-1, 2)
    null = Condition(len(indices), pooled=torch.zeros(len(indices), 2))
    return Condition(len(indices), pooled=pooled, null=null)


def run(process, sampler, *, indices=range(6), guidance=None, denoiser=None, start=None, **options):
    indices = torch.as_tensor(list(indices))
    return sampler(
        denoiser or Denoiser(),
        process,
        (len(indices), *SHAPE),
        condition=condition(indices),
        guidance=guidance or Guidance(),
        noise=Noise(3, indices),
        x_start=start,
        **options,
    )


@EACH_PROCESS
@EACH_SAMPLER
@pytest.mark.parametrize("guidance", [Guidance(), ClassifierFree(2.5)], ids=["plain", "guided"])
def test_an_image_is_the_same_in_any_batch(process, sampler, guidance):
    whole = run(process, sampler, indices=range(40), guidance=guidance)
    assert whole.dtype == torch.float64
    assert whole.isfinite().all()
    assert whole.std(0).min() > 1e-3
    for first, size in ((0, 1), (17, 1), (33, 7)):
        part = run(process, sampler, indices=range(first, first + size), guidance=guidance)
        torch.testing.assert_close(part, whole[first : first + size], rtol=0, atol=1e-9)


@EACH_PROCESS
@EACH_SAMPLER
def test_each_step_is_seen_and_each_call_counted(process, sampler):
    seen, denoiser = [], Denoiser()
    x0 = run(process, sampler, denoiser=denoiser, on_step=lambda *step: seen.append(step))
    assert [step for step, *_ in seen] == list(range(5))
    assert [s for _, s, _, _ in seen] == sampler.times(process)[1:]
    assert torch.equal(seen[-1][2], x0)
    assert all(prediction.x0.shape == xs.shape for _, _, xs, prediction in seen)
    calls = 9 if isinstance(sampler, Heun) and sampler.order == 2 else 5
    assert [n for n, _ in denoiser.calls] == [6] * calls
    assert all((t == t[0]).all() for _, t in denoiser.calls)
    if calls == 5:
        torch.testing.assert_close([float(t[0]) for _, t in denoiser.calls], sampler.times(process)[:-1])


@EACH_PROCESS
@EACH_SAMPLER
def test_the_last_state_is_the_last_prediction(process, sampler):
    """No noise in the last step, and nothing of the state before: alpha(0) = 1 and sigma(0) = 0."""
    last = []
    x0 = run(process, sampler, on_step=lambda step, s, xs, prediction: last.append(prediction.x0))
    torch.testing.assert_close(x0, last[-1], rtol=0, atol=1e-9)


@EACH_PROCESS
@EACH_SAMPLER
def test_scale_one_is_conditional_and_zero_unconditional(process, sampler):
    plain = run(process, sampler)
    assert torch.equal(run(process, sampler, guidance=ClassifierFree(1.0)), plain)

    class AlwaysBoth(ClassifierFree):
        def branches(self, condition, t):
            return [condition.null, condition]

    torch.testing.assert_close(run(process, sampler, guidance=AlwaysBoth(1.0)), plain, rtol=0, atol=1e-9)
    null = run(process, sampler, guidance=ClassifierFree(0.0))

    class NullOnly(Guidance):
        def branches(self, condition, t):
            return [condition.null]

    assert torch.equal(run(process, sampler, guidance=NullOnly()), null)
    assert (null - plain).abs().max() > 1e-3


@EACH_PROCESS
@pytest.mark.parametrize(
    "make",
    [lambda N: DDIM(N), lambda N: Heun(N), lambda N: Heun(N, order=1), lambda N: DPMSolver(N, order=1)],
    ids=["ddim", "heun", "euler", "dpm 1"],
)
def test_a_walk_from_below_is_the_rest_of_a_walk(process, make):
    states = []
    x0 = run(process, make(5), on_step=lambda step, s, xs, prediction: states.append((s, xs)))
    s, xs = states[1]
    torch.testing.assert_close(run(process, make(3), start=xs, t_start=s), x0, rtol=0, atol=1e-9)


@EACH_PROCESS
@EACH_SAMPLER
def test_a_walk_from_below_starts_where_it_is_told(process, sampler):
    denoiser, start = Denoiser(), torch.zeros(6, *SHAPE)
    assert run(process, sampler, denoiser=denoiser, start=start, t_start=0.5).isfinite().all()
    assert float(denoiser.calls[0][1][0]) == 0.5
    with pytest.raises(ValueError, match="x_start"):
        run(process, sampler, t_start=0.5)
    with pytest.raises(ValueError, match="must lie in"):
        run(process, sampler, start=start, t_start=1.5)


@EACH_PROCESS
@EACH_SAMPLER
def test_x0_is_clipped_after_guidance_and_the_noise_follows(process, sampler):
    """Clipping to the bound is the same walk as with a network that says the clipped, guided x0 itself."""
    guidance = ClassifierFree(3.0)
    wide = Denoiser(scale=2.0, bound=1.0)
    clipped = run(process, sampler, guidance=guidance, denoiser=wide)

    class Clipping(ClassifierFree):
        def on_prediction(self, predictions, process, xt, t):
            prediction = super().on_prediction(predictions, process, xt, t)
            assert prediction.x0.abs().max() > 1
            return Prediction(
                x0=prediction.x0.clamp(-1, 1),
                variance_fraction=prediction.variance_fraction,
                x0_variance=prediction.x0_variance,
            )

    torch.testing.assert_close(run(process, sampler, guidance=Clipping(3.0), denoiser=wide), clipped)
    assert clipped.abs().max() <= 1 + 1e-9
    options = {key: value for key, value in vars(sampler).items() if not key.startswith("_")}
    if isinstance(sampler, Heun):
        options["grid"] = None if sampler._own_grid else sampler.grid
    free = type(sampler)(**(options | {"clip": False}))
    assert run(process, free, guidance=guidance, denoiser=wide).abs().max() > 1.1


@EACH_PROCESS
def test_ddim_with_eta_one_is_the_ancestral_walk_with_the_small_variance(process):
    for clip in (True, False):
        ancestral = run(process, GaussianAncestral(7, clip=clip), denoiser=Denoiser(2.0, bound=1.0))
        torch.testing.assert_close(
            run(process, DDIM(7, eta=1.0, clip=clip), denoiser=Denoiser(2.0, bound=1.0)), ancestral
        )


@EACH_PROCESS
def test_the_learned_variance_runs_from_small_to_large_in_logarithm(process):
    def of(fraction, variance):
        def denoiser(xt, t, condition, noise):
            return Prediction(x0=torch.zeros_like(xt), variance_fraction=torch.full_like(xt, fraction))

        states = []
        run(
            process,
            GaussianAncestral(4, variance=variance),
            denoiser=denoiser,
            on_step=lambda *step: states.append(step[2]),
        )
        return states[0]

    # After one step from the same start: the mean is shared, and the noise is scaled by the deviation.
    small, large = of(0.0, "small"), of(0.0, "large")
    torch.testing.assert_close(of(0.0, "learned"), small)
    torch.testing.assert_close(of(1.0, "learned"), large)
    s, t = GaussianAncestral(4).times(process)[1], 1.0
    beta_tilde, beta = process.posterior_coefficients(s, t)[2], process.transition(s, t)[1]
    half = (beta_tilde * beta) ** 0.25
    share = (half - beta_tilde.sqrt()) / (beta.sqrt() - beta_tilde.sqrt()) if beta > beta_tilde else 0.0
    torch.testing.assert_close(of(0.5, "learned"), small + share * (large - small))


def test_the_optimal_variance_is_the_small_one_for_certain_data_and_the_large_one_for_unit_variance():
    class Certain(Denoiser):
        def __call__(self, xt, t, condition, noise):
            sure = torch.zeros(len(xt), 1, 1, 1, dtype=xt.dtype)
            return Prediction(x0=super().__call__(xt, t, condition, noise).x0, x0_variance=sure)

    small = run(CHAIN, GaussianAncestral(6, variance="small"), denoiser=Certain())
    torch.testing.assert_close(run(CHAIN, GaussianAncestral(6, variance="optimal"), denoiser=Certain()), small)

    def of_unit_variance(xt, t, condition, noise):
        alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (CHAIN.alpha, CHAIN.sigma))
        return Prediction(x0=alpha * xt, x0_variance=sigma.square())  # alpha^2 + sigma^2 = 1

    large = run(CHAIN, GaussianAncestral(6, variance="large"), denoiser=of_unit_variance)
    torch.testing.assert_close(run(CHAIN, GaussianAncestral(6, variance="optimal"), denoiser=of_unit_variance), large)


@pytest.mark.parametrize("variance", ["learned", "optimal"])
def test_a_variance_that_the_model_does_not_know_is_one_line(variance):
    with pytest.raises(UserError, match=f"sampler.variance={variance}: .* choose one of small, large$"):
        run(CHAIN, GaussianAncestral(3, variance=variance), denoiser=lambda xt, *rest: Prediction(x0=xt))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DDIM(0), "num_steps=0"),
        (lambda: DDIM(4, eta=1.5), "eta=1.5"),
        (lambda: DDIM(4, eta=float("nan")), "eta=nan"),
        (lambda: DDIM(4, grid="even"), "grid=even: choose one of trailing"),
        (lambda: Heun(4, order=3), "order=3"),
        (lambda: DPMSolver(4, order=3), "order=3"),
        (lambda: GaussianAncestral(4, variance="beta"), "variance=beta: choose one of small"),
    ],
)
def test_options_out_of_range_are_refused(make, words):
    with pytest.raises(UserError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("sampler", "process", "words"),
    [
        (
            DDIM(4),
            Absorbing(4, Cosine()),
            "DDIM draws from a GaussianProcess, not from a Absorbing: choose sampler=ancestral",
        ),
        (Ancestral(4), CHAIN, "Ancestral draws from a CategoricalProcess"),
        (DDIM(101), CHAIN, "the chain has 100 steps"),
        (DDIM(10, grid="uniform"), FLOW, "LinearPath is continuous"),
        (Heun(10, grid="karras"), FLOW, "take trailing"),
    ],
)
def test_a_process_that_a_sampler_cannot_walk_is_refused_before_anything_is_drawn(sampler, process, words):
    with pytest.raises(UserError, match=words) as refusal:
        sampler.check(process)
    assert "\n" not in str(refusal.value)


@EACH_PROCESS
@EACH_SAMPLER
def test_what_fits_is_not_refused(process, sampler):
    sampler.check(process)
    grid = sampler.times(process)
    assert all(a > b for a, b in itertools.pairwise(grid))


def test_a_network_that_predicts_no_x0_is_refused():
    with pytest.raises(ValueError, match="predicts x0"):
        run(CHAIN, DDIM(2), denoiser=lambda xt, *rest: Prediction(log_x0=xt))
