import pytest
import torch
from dense_reference import model_posterior, transition_matrix, true_posterior
from zoo import PROCESSES, TIMES, WEIGHTINGS, K

from drawn import assert_drawn_from
from trilemma.errors import UserError
from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import (
    Cosine,
    Linear,
    Schedule,
    VQDiffusionPaper,
    VQDiffusionReleased,
    as_float64,
)
from trilemma.processes.noise import Noise


def all_states(process):
    """States the process can be in, [1, N]: all but a mask that nothing goes to."""
    masks = process.num_states > K and process.schedule.gamma_bar(1.0) > 0
    return torch.arange(K + bool(masks))[None]


def random_p(*shape, seed=0):
    logits = 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(-1)


@pytest.mark.parametrize("process", PROCESSES)
def test_marginal_is_the_product_of_one_step_matrices(process):
    T = 40
    product = torch.eye(process.num_states, dtype=torch.float64)
    for i in range(T):
        product = product @ transition_matrix(process, i / T, (i + 1) / T)
        marginal = process.marginal(torch.arange(K)[None], (i + 1) / T)[0].exp()
        torch.testing.assert_close(marginal, product[:K], rtol=0, atol=1e-12)
        torch.testing.assert_close(marginal.sum(-1), torch.ones(K, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_transitions_compose(process, s, t):
    step = process.transition(torch.arange(process.num_states)[None], s, t)[0].exp()
    torch.testing.assert_close(step, transition_matrix(process, s, t), rtol=0, atol=1e-12)
    start = process.marginal(torch.arange(K)[None], s)[0].exp()
    torch.testing.assert_close(start @ step, process.marginal(torch.arange(K)[None], t)[0].exp(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_posterior_is_bayes(process, s, t, weighting):
    p = random_p(K)
    xt = all_states(process)
    log_x0 = p.log().expand(1, xt.shape[1], K)
    ours = process.posterior(log_x0, xt, s, t, weighting)[0].exp()
    reference = model_posterior(process, p, s, t, weighting)[xt[0]]
    defined = ~reference.isnan().any(-1)
    assert defined.any()
    torch.testing.assert_close(ours[defined], reference[defined], rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(ours.sum(-1), torch.ones(len(ours), dtype=torch.float64), rtol=0, atol=1e-12)
    # Where nothing can have been replaced, a token that is not masked stays.
    frozen = ~defined & process.is_known(xt)[0]
    assert (ours[frozen].argmax(-1) == xt[0, frozen]).all()
    scaled = process.posterior(log_x0 + 0.7, xt, s, t, weighting)[0]
    torch.testing.assert_close(scaled.exp(), ours * torch.tensor(0.7).double().exp(), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_one_hot_x0_gives_the_true_posterior_which_preserves_the_marginal(process, s, t):
    truth = true_posterior(process, s, t)
    Qs, Qt = transition_matrix(process, 0.0, s)[:K], transition_matrix(process, 0.0, t)[:K]
    x0 = torch.arange(K)
    log_x0 = torch.full((K, K), -torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    xt = torch.arange(process.num_states).expand(K, -1)
    for weighting in WEIGHTINGS:
        ours = process.posterior(log_x0[:, None].expand(K, process.num_states, K), xt, s, t, weighting).exp()
        reachable = Qt > 0
        torch.testing.assert_close(ours[reachable], truth[reachable], rtol=1e-7, atol=1e-10)
        back = torch.einsum("kt,kts->ks", Qt, ours.nan_to_num())
        torch.testing.assert_close(back[x0], Qs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_posterior_at_the_ends(process):
    xt = all_states(process)
    p = random_p(1, xt.shape[1], K)
    at_zero = process.posterior(p.log(), xt, 0.0, 0.5, "posterior").exp()[0]
    moves = ~process.is_known(xt)[0] | (
        process.marginal(torch.zeros(1, 1, dtype=torch.int64), 0.5)[0, 0, 1] > -torch.inf
    )
    torch.testing.assert_close(at_zero[moves, :K], p[0, moves], rtol=1e-7, atol=1e-10)
    for weighting in WEIGHTINGS:
        stays = process.posterior(p.log(), xt, 0.5 - 1e-10, 0.5, weighting).exp()[0]
        assert (1 - stays.diagonal()).max() < 1e-3


def test_weightings_agree_for_masking_and_differ_as_worked_out_for_uniform():
    masking = Absorbing(K, Linear())
    p = random_p(1, K + 1, K)
    a, b = (masking.posterior(p.log(), all_states(masking), 0.2, 0.6, w).exp() for w in WEIGHTINGS)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)

    uniform = Uniform(4, Linear())
    p = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]], dtype=torch.float64)
    expected = {"posterior": (0.196, 0.156, 0.572, 0.076), "joint": (0.113, 0.091, 0.751, 0.046)}
    for weighting, values in expected.items():
        ours = uniform.posterior(p.log(), torch.tensor([[2]]), 0.3, 0.5, weighting)[0, 0].exp()
        torch.testing.assert_close(ours, torch.tensor(values, dtype=torch.float64), rtol=0, atol=6e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning:diffusers", "ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("t", [1, 2, 37, 98, 99])
def test_released_schedule_is_that_of_diffusers(t):
    module = pytest.importorskip("diffusers.schedulers.scheduling_vq_diffusion")
    scheduler = module.VQDiffusionScheduler(num_vec_classes=K + 1, num_train_timesteps=100)
    process = MaskAndReplace(K, VQDiffusionReleased())
    p = random_p(1, K + 1, K)
    theirs = scheduler.q_posterior(p.log().transpose(1, 2), all_states(process), t).transpose(1, 2).exp()
    ours = process.posterior(p.log(), all_states(process), t / 100, (t + 1) / 100, "posterior").exp()
    # Its constants are float32, and a b_bar of 2e-7 that float32 forms as 1 - alpha_bar - gamma_bar would be noise.
    torch.testing.assert_close(ours, theirs.to(ours), rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.4), (0.3, 0.8), (0.99, 1.0)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_step_draws_from_the_posterior(process, s, t, weighting):
    num = 4000
    states = all_states(process)
    S = states.shape[1]
    p = random_p(S, K, seed=1)
    xt = states.expand(num, S)
    distribution = process.posterior(p.log()[None], xt[:1], s, t, weighting)[0].exp()
    noise = Noise(7, torch.arange(num))
    xs = process.step(p.log().expand(num, S, K), xt, s, t, weighting, noise)
    for state in range(S):
        assert_drawn_from(xs[:, state], distribution[state])


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_an_accelerator_which_works_on_all_positions_draws_the_same(process, weighting, monkeypatch):
    xt = all_states(process).repeat(50, 1)
    log_x0 = random_p(*xt.shape, K).log()
    picked = process.step(log_x0, xt, 0.3, 0.8, weighting, Noise(0, torch.arange(50)))
    monkeypatch.setattr("trilemma.processes.categorical.closed_form._can_pick", lambda device: False)
    assert torch.equal(process.step(log_x0, xt, 0.3, 0.8, weighting, Noise(0, torch.arange(50))), picked)
    assert not torch.equal(picked, xt)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_sample_draws_from_the_marginal(process, t):
    x0 = torch.arange(K).expand(5000, K)
    xt = process.sample(x0, t, Noise(3, torch.arange(5000)))
    distribution = process.marginal(x0[:1], t)[0].exp()
    for k in range(K):
        assert_drawn_from(xt[:, k], distribution[k])


@pytest.mark.parametrize("process", PROCESSES)
def test_times_per_image_are_times(process):
    B, L = 4, 6
    s, t = torch.tensor([0.0, 0.1, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.2, 0.9, 0.4, 1.0]).double()
    x0 = torch.randint(K, (B, L), generator=torch.Generator().manual_seed(0))
    log_x0 = random_p(B, L, K).log()
    noise = [Noise(1, torch.arange(B)) for _ in range(2)]
    xt = process.sample(x0, t, noise[0])
    posterior = process.posterior(log_x0, xt, s, t, "posterior")
    kl = process.kl(log_x0, x0, xt, s, t, "joint")
    stepped = process.step(log_x0, xt, s, t, "posterior", noise[0])
    transition = process.transition(xt, s, t)
    for i in range(B):
        one, si, ti = slice(i, i + 1), float(s[i]), float(t[i])
        single = Noise(1, torch.tensor([i]))
        assert torch.equal(process.sample(x0[one], ti, single), xt[one])
        torch.testing.assert_close(process.posterior(log_x0[one], xt[one], si, ti, "posterior"), posterior[one])
        torch.testing.assert_close(process.kl(log_x0[one], x0[one], xt[one], si, ti, "joint"), kl[one])
        torch.testing.assert_close(process.transition(xt[one], si, ti), transition[one])
        assert torch.equal(process.step(log_x0[one], xt[one], si, ti, "posterior", single), stepped[one])


@pytest.mark.parametrize("process", PROCESSES)
def test_prior_is_the_mean_of_the_last_marginal_and_prior_kl_the_divergence_to_it(process):
    last = transition_matrix(process, 0.0, 1.0)[:K]
    prior = last.mean(0)
    drawn = process.prior((200, 50), Noise(0, torch.arange(200)))
    assert_drawn_from(drawn.flatten(), prior)
    kl = torch.xlogy(last, last / prior.clamp(min=1e-300)).sum(-1)
    torch.testing.assert_close(process.prior_kl(torch.arange(K)[None])[0], kl, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
def test_rate_is_the_derivative_of_the_transition(process):
    t, h = 0.4, 1e-6
    rates = process.rate(t)
    Q = transition_matrix(process, t, t + h)
    assert float(rates.replace) / K == pytest.approx(float(Q[0, 1]) / h, rel=1e-4, abs=1e-9)
    masked = float(Q[0, K]) / h if process.num_states > K else 0.0
    assert float(rates.mask) == pytest.approx(masked, rel=1e-4, abs=1e-9)


def test_known_is_what_names_a_class():
    masking, uniform = MaskAndReplace(K, VQDiffusionPaper()), Uniform(K, Linear())
    assert masking.is_known(torch.arange(K + 1)).tolist() == [True] * K + [False]
    assert uniform.is_known(torch.arange(K)).all()


class Rising(Schedule):
    """Forgets, then remembers."""

    def alpha_bar(self, t):
        return 1 - as_float64(t) * (1 - as_float64(t))

    def gamma_bar(self, t):
        return 0 * as_float64(t)


class Replenished(Schedule):
    """Alpha_bar falls, but slower than what is unmasked: replaced tokens would have to turn back."""

    def alpha_bar(self, t):
        return torch.where(as_float64(t) < 0.5, 1 - as_float64(t), 0.75 - 0.5 * as_float64(t))

    def gamma_bar(self, t):
        return torch.where(as_float64(t) < 0.5, 0.0, 1.2 * (as_float64(t) - 0.5))


@pytest.mark.parametrize("schedule", [Rising(), Replenished()])
def test_a_schedule_that_is_no_chain_is_refused(schedule):
    with pytest.raises(UserError, match="rises near"):
        MaskAndReplace(K, schedule)


def test_a_split_that_does_not_fit_the_process_is_refused():
    with pytest.raises(UserError, match="mask_fraction=1"):
        Absorbing(K, Cosine(0.9))
    with pytest.raises(UserError, match="mask_fraction=0"):
        Uniform(K, VQDiffusionPaper())
    with pytest.raises(UserError, match="num_classes=1"):
        Uniform(1, Linear())
    with pytest.raises(ValueError, match="0 <= s < t <= 1"):
        Uniform(K, Linear()).transition(torch.zeros(1, 1, dtype=torch.int64), 0.5, 0.5)
