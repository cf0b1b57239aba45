import pytest
import torch
from scipy import stats

from trilemma.conditions.base import Condition
from trilemma.errors import UserError
from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Cosine, Linear, VQDiffusionPaper, VQDiffusionReleased
from trilemma.processes.noise import Noise
from trilemma.samplers.base import Prediction
from trilemma.samplers.categorical.ancestral import Ancestral
from trilemma.samplers.guidance import ClassifierFree, Guidance

K, L = 6, 10
PROCESSES = [
    MaskAndReplace(K, VQDiffusionPaper()),
    MaskAndReplace(K, VQDiffusionReleased()),
    Absorbing(K, Cosine()),
    Uniform(K, Linear()),
]
IDS = ["paper", "released", "absorbing", "uniform"]


class Denoiser:
    """A fixed random function of (xt, t, condition), image by image, in float64."""

    def __init__(self, num_states, weighting="posterior"):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(num_states, L, K, dtype=torch.float64, generator=generator)
        self.weighting = weighting
        self.calls = []

    def __call__(self, xt, t, condition, noise):
        self.calls.append((len(xt), len(condition), t))
        hidden = self.weight[xt].sum(1) + torch.sin(7 * t.double())[:, None, None]
        if condition.pooled is not None:
            hidden = hidden + 0.3 * condition.pooled.double()[:, :1, None] * self.weight[0]
        return Prediction(log_x0=(0.7 * hidden).log_softmax(-1), weighting=self.weighting)


def condition(num, null=True):
    pooled = (torch.arange(num, dtype=torch.float32) % 4 - 1.5)[:, None].expand(num, 2)
    return Condition(num, pooled=pooled, null=Condition(num, pooled=torch.zeros(num, 2)) if null else None)


def run(process, sampler, *, indices=range(8), guidance=None, denoiser=None, start=None, **options):
    indices = torch.as_tensor(list(indices))
    whole = condition(int(indices.max()) + 1)
    assert whole.pooled is not None
    assert whole.null is not None
    part = Condition(len(indices), whole.pooled[indices], null=Condition(len(indices), whole.null.pooled[indices]))
    return sampler(
        denoiser or Denoiser(process.num_states),
        process,
        (len(indices), L),
        condition=part,
        guidance=guidance or Guidance(),
        noise=Noise(3, indices),
        x_start=start,
        **options,
    )


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("weighting", ["posterior", "joint"])
@pytest.mark.parametrize("num_steps", [1, 4, 25])
def test_samples_are_classes(process, weighting, num_steps):
    denoiser = Denoiser(process.num_states, weighting)
    x0 = run(process, Ancestral(num_steps), denoiser=denoiser)
    assert x0.shape == (8, L)
    assert x0.dtype == torch.int64
    assert x0.min() >= 0
    assert x0.max() < K
    times = [float(t[0]) for _, _, t in denoiser.calls]
    assert times == pytest.approx([i / num_steps for i in range(num_steps, 0, -1)])


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("guidance", [Guidance(), ClassifierFree(2.5)])
def test_an_image_is_the_same_in_any_batch(process, guidance):
    sampler = Ancestral(4, truncation=0.9, temperature=0.8)
    whole = run(process, sampler, indices=range(64), guidance=guidance)
    assert len(whole.unique(dim=0)) > 1
    for first, size in ((0, 1), (17, 1), (0, 7), (57, 7)):
        part = run(process, sampler, indices=range(first, first + size), guidance=guidance)
        assert torch.equal(part, whole[first : first + size])


@pytest.mark.parametrize("process", PROCESSES[:3], ids=IDS[:3])
@pytest.mark.parametrize("num_steps", [2, 10])
def test_the_masked_share_at_every_time_is_that_of_the_forward_process(process, num_steps):
    """Whatever the denoiser says: a wrong stride, or a start the network was not trained on, shows here."""
    shares = []

    def record(step, s, xs, prediction):
        shares.append((s, float((~process.is_known(xs)).double().mean())))

    num = 1000
    run(process, Ancestral(num_steps), indices=range(num), on_step=record)
    assert len(shares) == num_steps
    for s, share in shares:
        gamma = float(process.schedule.gamma_bar(s))
        sigma = (gamma * (1 - gamma) / (num * L)) ** 0.5
        assert abs(share - gamma) <= 4.5 * sigma + 1e-12


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
@pytest.mark.parametrize("num_steps", [3, 10])
def test_knowing_x0_the_trajectory_has_the_forward_marginals(process, num_steps):
    num = 800
    x0 = torch.arange(L) % K
    certain = torch.nn.functional.one_hot(x0, K).double().log().expand(num, L, K)
    seen = []

    def denoiser(xt, t, condition, noise):
        return Prediction(log_x0=certain)

    def record(step, s, xs, prediction):
        seen.append((s, xs))

    # The prior is q(x1|x0) but for what alpha_bar(1) leaves, 1e-5 at most in these schedules.
    final = run(process, Ancestral(num_steps), indices=range(num), denoiser=denoiser, on_step=record)
    if process.prior_kl(x0[None]).max() == 0:
        assert torch.equal(final, x0.expand(num, L))
    for s, xs in seen[:-1]:
        distribution = process.marginal(x0[None], s)[0].exp()
        for position in range(0, L, 3):
            counts = torch.bincount(xs[:, position], minlength=process.num_states).double()
            expected = num * distribution[position]
            common = expected > 5
            statistic = ((counts - expected) ** 2 / expected)[common].sum()
            assert stats.chi2.sf(float(statistic), int(common.sum())) > 1e-5
            rare = float(expected[~common].sum())
            assert counts[~common].sum() <= rare + 5 * rare**0.5


def test_guidance_runs_its_branches_as_one_batch_and_only_where_it_must():
    process = PROCESSES[0]
    for guidance, size in (
        (Guidance(), 8),
        (ClassifierFree(1.0), 8),
        (ClassifierFree(0.0), 8),
        (ClassifierFree(3.0), 16),
    ):
        denoiser = Denoiser(process.num_states)
        run(process, Ancestral(4), guidance=guidance, denoiser=denoiser)
        assert [(n, m, len(t)) for n, m, t in denoiser.calls] == [(size, size, size)] * 4
    denoiser = Denoiser(process.num_states)
    run(process, Ancestral(4), guidance=ClassifierFree(3.0, start=0.8, stop=0.4), denoiser=denoiser)
    assert [n for n, _, _ in denoiser.calls] == [8, 16, 16, 8]


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_scale_one_is_conditional_and_zero_unconditional(process):
    plain = run(process, Ancestral(5))
    assert torch.equal(run(process, Ancestral(5), guidance=ClassifierFree(1.0)), plain)

    class AlwaysBoth(ClassifierFree):
        def branches(self, condition, t):
            return [condition.null, condition]

    assert torch.equal(run(process, Ancestral(5), guidance=AlwaysBoth(1.0)), plain)
    null = run(process, Ancestral(5), guidance=ClassifierFree(0.0))
    assert torch.equal(run(process, Ancestral(5), guidance=AlwaysBoth(0.0)), null)
    assert not torch.equal(null, plain)
    assert not torch.equal(run(process, Ancestral(5), guidance=ClassifierFree(4.0)), plain)


class Identity(Guidance):
    """Forms the posterior and leaves it."""

    seen = 0

    def on_posterior(self, log_ps, process, xt, t):
        self.seen += 1
        torch.testing.assert_close(log_ps.exp().sum(-1), torch.ones(xt.shape, dtype=log_ps.dtype))
        return log_ps


class Forbidding(Guidance):
    """Never class 0."""

    def on_posterior(self, log_ps, process, xt, t):
        forbidden = torch.arange(log_ps.shape[-1]) == 0
        return log_ps.masked_fill(forbidden, -torch.inf)


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_a_guidance_on_the_posterior_is_obeyed(process):
    identity = Identity()
    formed = run(process, Ancestral(3), guidance=identity, indices=range(200))
    assert identity.seen == 3
    stepped = run(process, Ancestral(3), indices=range(200))
    a, b = (torch.bincount(x.flatten(), minlength=K).double() for x in (formed, stepped))
    # The same distribution by two routes.
    assert stats.chi2_contingency(torch.stack([a, b])[:, (a + b) > 10].numpy()).pvalue > 1e-4
    assert (run(process, Ancestral(5), guidance=Forbidding()) != 0).all()


def test_cold_is_greedy_and_truncation_drops_the_tail():
    process = PROCESSES[2]
    seen = []

    def record(step, s, xs, prediction):
        seen.append(prediction.log_x0)

    run(process, Ancestral(3, temperature=1e-4), on_step=record)
    assert all(float(p.softmax(-1).amax(-1).min()) > 0.6 for p in seen)
    seen.clear()
    x0 = run(process, Ancestral(1, truncation=1e-9), on_step=record)
    assert torch.equal(x0, seen[0].argmax(-1))


def test_a_trajectory_may_start_from_a_state():
    process = PROCESSES[2]
    start = torch.arange(8 * L).view(8, L) % (K + 1)
    known = process.is_known(start)
    denoiser = Denoiser(process.num_states)
    x0 = run(process, Ancestral(4), denoiser=denoiser, start=start, t_start=0.2)
    assert [float(t[0]) for _, _, t in denoiser.calls] == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert torch.equal(x0[known], start[known])
    assert process.is_known(x0).all()
    with pytest.raises(ValueError, match="x_start"):
        run(process, Ancestral(4), t_start=0.5)
    with pytest.raises(ValueError, match="t_start"):
        run(process, Ancestral(4), start=start, t_start=0.0)


def test_no_gradient_is_recorded_but_samples_are_ordinary_tensors():
    process = PROCESSES[0]
    denoiser = Denoiser(process.num_states)
    denoiser.weight.requires_grad_()
    seen = []
    x0 = run(
        process, Ancestral(2), denoiser=denoiser, on_step=lambda step, s, xs, p: seen.append(p.log_x0.requires_grad)
    )
    assert seen == [False, False]
    assert not x0.is_inference()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_steps": 0}, "sampler.num_steps=0"),
        ({"num_steps": 4, "truncation": 0.0}, "sampler.truncation=0"),
        ({"num_steps": 4, "truncation": 1.5}, "sampler.truncation=1.5"),
        ({"num_steps": 4, "temperature": 0.0}, "sampler.temperature=0"),
        ({"num_steps": 4, "temperature": float("nan")}, "sampler.temperature=nan"),
    ],
)
def test_options_out_of_range_are_refused(options, name):
    with pytest.raises(UserError, match=name) as refusal:
        Ancestral(**options)
    assert "\n" not in str(refusal.value)


def test_a_network_that_predicts_no_classes_is_refused():
    with pytest.raises(ValueError, match="log_x0"):
        run(PROCESSES[0], Ancestral(1), denoiser=lambda xt, t, condition, noise: Prediction(x0=xt))


def test_times_of_the_grid_are_the_decimals_that_an_interval_names():
    """0.3 of a guidance's interval is 3/10 of the grid, and not 1 - 7/10, which rounds to more."""
    for num_steps in (7, 10, 25, 100):
        times = Ancestral(num_steps).times(None)
        assert times == [i / num_steps for i in range(num_steps, -1, -1)]
    guided = ClassifierFree(2.0, start=0.3)
    condition = Condition(1, null=Condition(1))
    calls = [len(guided.branches(condition, t)) for t in Ancestral(10).times(None)[:-1]]
    assert calls == [1] * 7 + [2] * 3
