"""A toy that can be enumerated: 3 tokens of 3 classes, and a denoiser that knows the data distribution."""

import itertools

import pytest
import torch

from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Linear, VQDiffusionPaper

K, L = 3, 3
X0 = torch.tensor(list(itertools.product(range(K), repeat=L)))
DATA = torch.distributions.Dirichlet(torch.full((len(X0),), 0.3, dtype=torch.float64))
PROCESSES = [Absorbing(K, Linear()), MaskAndReplace(K, VQDiffusionPaper()), Uniform(K, Linear())]
IDS = ["absorbing", "mask-and-replace", "uniform"]


@pytest.fixture(scope="module")
def data():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DATA.sample()


def states(process):
    return torch.tensor(list(itertools.product(range(process.num_states), repeat=L)))


def likelihood(process, t):
    """q(xt|x0), [27, N]."""
    per_token = process.marginal(X0, t).exp()
    columns = [per_token[:, position, states(process)[:, position]] for position in range(L)]
    return torch.stack(columns).prod(0)


def optimal_denoiser(process, data, t):
    """log p(x0_l|xt) for every state, [N, L, K]; uniform where a state cannot occur."""
    joint = data[:, None] * likelihood(process, t)
    one_hot = torch.nn.functional.one_hot(X0, K).double()
    p = torch.einsum("xn,xlk->nlk", joint, one_hot)
    total = p.sum(-1, keepdim=True)
    return torch.where(total > 0, p / total, 1 / K).log()


def chain(process, data, T, weighting="posterior"):
    """(distribution of the reverse chain's x0 [27], bound on -log p averaged over the data, in nats)."""
    xs = states(process)
    prior = torch.stack([process.marginal(torch.arange(K)[None], 1.0)[0].exp().mean(0)[xs[:, i]] for i in range(L)])
    distribution = prior.prod(0)
    bound = (data * process.prior_kl(X0).sum(-1)).sum()
    for i in range(T, 0, -1):
        s, t = (i - 1) / T, i / T
        log_x0 = optimal_denoiser(process, data, t)
        step = process.posterior(log_x0, xs, s, t, weighting).exp()
        matrix = torch.stack([step[:, position, xs[:, position]] for position in range(L)]).prod(0)
        distribution = distribution @ matrix
        reach = data[:, None] * likelihood(process, t)
        x, n = (reach > 0).nonzero(as_tuple=True)
        kl = process.kl(log_x0[n], X0[x], xs[n], s, t, weighting).sum(-1)
        bound = bound + (reach[x, n] * kl).sum()
    is_data = (xs < K).all(-1)
    assert distribution[~is_data].sum() < 1e-12
    return distribution[is_data], bound


@pytest.mark.parametrize("process", PROCESSES, ids=IDS)
def test_the_bound_tightens_with_steps_and_never_passes_the_entropy(process, data):
    entropy = -(data * data.log()).sum()
    distributions, bounds = zip(*(chain(process, data, T) for T in (1, 2, 4, 8, 16)), strict=True)
    distances = [float((distribution - data).abs().sum() / 2) for distribution in distributions]
    for distribution, bound in zip(distributions, bounds, strict=True):
        # What the bound gives away is at least the divergence of the chain's distribution from the data's.
        divergence = (data * (data / distribution).log()).sum()
        assert bound - entropy >= divergence - 1e-12
        assert divergence >= 0
    assert all(later < earlier for earlier, later in itertools.pairwise(bounds))
    assert distances[-1] < 0.06
    assert distances[-1] < 0.25 * distances[0]
    # First order in 1/T: doubling the steps about halves what is given away.
    gaps = [float(bound - entropy) for bound in bounds]
    assert gaps[-1] / gaps[-2] == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize("process", PROCESSES[1:], ids=IDS[1:])
def test_the_posterior_weighting_is_the_exact_one_for_a_denoiser_that_is_right(process, data):
    """p(x0|xt) of a perfect network already knows xt: "joint" counts q(xt|xs) once more."""
    _, posterior = chain(process, data, 8, "posterior")
    _, joint = chain(process, data, 8, "joint")
    assert posterior < joint


def test_masking_one_token_a_step_attains_the_entropy(data):
    """Chain rule in random order: with n masked, revealing a share 1/n of them costs one token's surprise."""
    process = Absorbing(K, Linear())
    entropy = -(data * data.log()).sum()
    bound = torch.zeros((), dtype=torch.float64)
    xs = states(process)
    index = {tuple(x.tolist()): i for i, x in enumerate(xs)}
    for n in range(1, L + 1):
        s, t = (n - 1) / L, n / L
        log_x0 = optimal_denoiser(process, data, t)
        subsets = list(itertools.combinations(range(L), n))
        for masked in subsets:
            xt = X0.clone()
            xt[:, list(masked)] = K
            rows = torch.tensor([index[tuple(x.tolist())] for x in xt])
            kl = process.kl(log_x0[rows], X0, xt, s, t, "posterior").sum(-1)
            bound = bound + (data * kl).sum() / len(subsets)
    torch.testing.assert_close(bound, entropy, rtol=1e-12, atol=1e-12)


def test_continuous_time_bound_of_masking_does_not_depend_on_the_schedule(data):
    """The finite bound converges to cross-entropy weighted by -alpha'/(1 - alpha), which integrates to the entropy."""
    entropy = -(data * data.log()).sum()
    process = Absorbing(K, Linear())
    T = 32
    _, bound = chain(process, data, T)
    midpoints = torch.zeros((), dtype=torch.float64)
    for i in range(T):
        t = (i + 0.5) / T
        rates = process.rate(t)
        alpha = process.schedule.alpha_bar(t)
        weight = rates.mask * alpha / (1 - alpha)
        log_x0 = optimal_denoiser(process, data, t)
        reach = data[:, None] * likelihood(process, t)
        x, n = (reach > 0).nonzero(as_tuple=True)
        xt = states(process)[n]
        terms = process.bound_terms(log_x0[n], X0[x], xt, 0.0, t, "posterior").kl.sum(-1)
        midpoints = midpoints + (reach[x, n] * weight * terms).sum() / T
    assert float(midpoints) == pytest.approx(float(entropy), rel=1e-3)
    assert 0 < float(bound - entropy) < 0.1
