"""The dense defaults of a process against the closed forms, and on a process that is one matrix."""

import pytest
import torch
from ring import Ring
from zoo import PROCESSES, TIMES, WEIGHTINGS, K

from drawn import assert_drawn_from
from trilemma.processes.categorical import dense
from trilemma.processes.categorical.base import CategoricalProcess
from trilemma.processes.categorical.closed_form import MaskAndReplace
from trilemma.processes.categorical.schedules import Cosine, VQDiffusionPaper
from trilemma.processes.noise import Noise

B, L = 4, 12
PER_IMAGE = (torch.tensor([0.0, 0.1, 0.3, 0.1]).double(), torch.tensor([0.2, 0.9, 0.4, 0.9]).double())


class Stripped(CategoricalProcess):
    """A process of which only the two distributions that must be stated are left."""

    def __init__(self, process):
        super().__init__()
        self.process = process
        self.num_classes, self.num_states = process.num_classes, process.num_states

    def marginal(self, x0, t):
        return self.process.marginal(x0, t)

    def transition(self, xs, s, t):
        return self.process.transition(xs, s, t)


def batch(process, t, seed=0):
    """x0, xt that q(xt|x0) reaches, and logits, [B, L] and [B, L, K]."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randint(process.num_classes, (B, L), generator=generator)
    logits = 3 * torch.randn(B, L, process.num_classes, dtype=torch.float64, generator=generator)
    return x0, process.sample(x0, t, Noise(seed, torch.arange(B))), logits


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), [*TIMES, PER_IMAGE, (0.1, PER_IMAGE[1])])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_posterior_and_bound_are_those_in_closed_form(process, s, t, weighting):
    stripped = Stripped(process)
    x0, xt, logits = batch(process, t)
    log_x0 = logits.log_softmax(-1) + 0.7
    torch.testing.assert_close(
        stripped.posterior(log_x0, xt, s, t, weighting).exp(),
        process.posterior(log_x0, xt, s, t, weighting).exp(),
        rtol=1e-9,
        atol=1e-10,
    )
    terms = []
    for one in (stripped, process):
        leaf = logits.clone().requires_grad_()
        kl, cross_entropy = one.bound_terms(leaf, x0, xt, s, t, weighting)
        weights = torch.arange(1.0, B + 1)[:, None]
        (grad,) = torch.autograd.grad((weights * kl + 0.3 * cross_entropy).sum(), leaf)
        terms.append((kl.detach(), cross_entropy.detach(), grad))
    for ours, theirs in zip(*terms, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
def test_prior_kl_is_that_in_closed_form(process):
    x0 = torch.randint(K, (B, L), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Stripped(process).prior_kl(x0), process.prior_kl(x0), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
def test_draws_are_from_their_distributions(process):
    stripped, num = Stripped(process), 4000
    noise = Noise(5, torch.arange(num))
    x0 = torch.arange(K).expand(num, K)
    xt = stripped.sample(x0, 0.6, noise)
    for k in range(K):
        assert_drawn_from(xt[:, k], process.marginal(x0[:1], 0.6)[0, k].exp())
    assert_drawn_from(stripped.prior((num, 3), noise).flatten(), process.marginal(x0[:1], 1.0)[0].exp().mean(0))

    states = process.sample(torch.arange(K)[None], 0.6, Noise(0, torch.arange(1)))
    logits = 40 + 2 * torch.randn(1, K, K, generator=torch.Generator().manual_seed(1))
    for weighting in WEIGHTINGS:
        xs = stripped.step(logits.expand(num, K, K), states.expand(num, K), 0.3, 0.6, weighting, noise)
        expected = process.posterior(logits.double().log_softmax(-1), states, 0.3, 0.6, weighting)[0].exp()
        for k in range(K):
            assert_drawn_from(xs[:, k], expected[k])


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_what_is_far_below_the_largest_is_kept(weighting):
    """Logits a thousand nats apart: a product of probabilities would underflow to zero."""
    process = MaskAndReplace(K, VQDiffusionPaper())
    x0 = torch.arange(K)[None]
    xt = torch.full((1, K), K)
    logits = -1000.0 * torch.arange(K, dtype=torch.float64).expand(1, K, K)
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    ours, theirs = (
        one.kl(leaf, x0, xt, 0.0, 0.5, weighting)
        for one, leaf in zip((Stripped(process), process), leaves, strict=True)
    )
    assert theirs.max() > 3999
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(kl.sum(), leaf)[0] for kl, leaf in zip((ours, theirs), leaves, strict=True)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_x0_that_cannot_have_become_xt_leaves_it_where_it_is(weighting):
    process = Stripped(MaskAndReplace(K, Cosine(1.0)))
    log_x0 = torch.full((1, 1, K), -torch.inf, dtype=torch.float64)
    log_x0[..., 1] = -0.5
    out = process.posterior(log_x0, torch.tensor([[3]]), 0.2, 0.6, weighting)[0, 0]
    expected = torch.full((K + 1,), -torch.inf, dtype=torch.float64)
    expected[3] = -0.5
    torch.testing.assert_close(out, expected)
    kl = process.kl(log_x0, torch.tensor([[3]]), torch.tensor([[3]]), 0.2, 0.6, weighting)
    torch.testing.assert_close(kl, torch.zeros_like(kl))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_rows_in_chunks_are_rows(weighting, monkeypatch):
    process = Ring(7)
    x0, xt, logits = batch(process, 0.5)
    logits.requires_grad_()

    def both():
        kl = process.kl(logits, x0, xt, 0.2, 0.5, weighting)
        return process.posterior(logits.detach(), xt, 0.2, 0.5, weighting), kl, *torch.autograd.grad(kl.sum(), logits)

    whole = both()
    monkeypatch.setattr(dense, "_CHUNK_ELEMENTS", 70)
    torch.testing.assert_close(both(), whole, rtol=1e-12, atol=1e-13)


def test_a_matrix_is_a_process():
    process, states = Ring(7), torch.arange(7)[None]
    s, t = 0.3, 0.8
    start, step, end = (process.transition(states, *pair)[0].exp() for pair in ((0.0, s), (s, t), (0.0, t)))
    torch.testing.assert_close(start @ step, end, rtol=0, atol=1e-12)
    # Bayes, written out.
    p = torch.rand(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    truth = start[:, None, :] * step.T[None] / end[:, :, None]  # x0, xt, xs
    posterior = process.posterior(p[None], states, s, t, "posterior")[0].exp()
    torch.testing.assert_close(posterior, torch.einsum("tk,kts->ts", p.exp(), truth), rtol=1e-12, atol=1e-14)
    joint = step.T * (p.exp() @ start)
    joint = joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(process.posterior(p[None], states, s, t, "joint")[0].exp(), joint)
    x0 = torch.tensor([[4, 4, 5, 6, 0, 1, 2]])
    q = truth[x0[0], states[0]]
    kl = (q * (q / joint).log()).sum(-1)
    torch.testing.assert_close(process.kl(p[None], x0, states, s, t, "joint")[0], kl, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(
        process.kl(p[None], x0, states, 0.0, t, "posterior"), -p[None].gather(2, x0[..., None])[..., 0]
    )
    assert process.is_known(states).all()
    assert (process.prior_kl(states) > 0).all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradients_of_a_matrix(weighting):
    process = Ring(5)
    x0, xt, logits = batch(process, 0.5)
    s, t = torch.tensor([0.0, 0.1, 0.3, 0.3]).double(), 0.5
    assert torch.autograd.gradcheck(
        lambda x: tuple(process.bound_terms(x, x0, xt, s, t, weighting)), logits.requires_grad_(), fast_mode=True
    )


def test_low_precision_comes_out_as_it_went_in():
    process = Ring(5)
    x0, xt, logits = batch(process, 0.5)
    assert process.posterior(logits.bfloat16(), xt, 0.2, 0.5, "joint").dtype == torch.bfloat16
    low = logits.bfloat16().requires_grad_()
    kl = process.kl(low, x0, xt, 0.2, 0.5, "joint")
    assert kl.dtype == torch.float32
    assert torch.autograd.grad(kl.sum(), low)[0].dtype == torch.bfloat16


def test_a_matrix_is_walked_back_to_the_data():
    """One class is known to the network: the strided chain of drawn steps ends there, by either weighting."""
    process = Ring(6)
    log_x0 = torch.full((6,), -torch.inf).index_fill(0, torch.tensor([2]), 0.0).expand(8, 10, 6)
    for weighting in WEIGHTINGS:
        noise = Noise(3, torch.arange(8))
        xt = process.prior((8, 10), noise)
        assert len(xt.unique()) == 6
        for s, t in ((0.5, 1.0), (0.1, 0.5), (0.0, 0.1)):
            xt = process.step(log_x0, xt, s, t, weighting, noise)
        assert (xt == 2).all()
