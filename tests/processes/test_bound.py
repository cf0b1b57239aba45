import pytest
import torch
from torch.nn import functional as F
from zoo import PROCESSES, WEIGHTINGS, K

from trilemma.processes.categorical.closed_form import MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Linear, VQDiffusionPaper, VQDiffusionReleased
from trilemma.processes.noise import Noise


def pairs(process, t):
    """Every (x0, xt) that q(xt|x0) reaches, [1, N] each."""
    reach = process.marginal(torch.arange(K)[None], t)[0] > -torch.inf
    x0, xt = reach.nonzero(as_tuple=True)
    return x0[None], xt[None]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.3, 0.8), (0.99, 1.0)])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradient(process, s, t, weighting):
    x0, xt = pairs(process, t)
    logits = torch.randn(1, x0.shape[1], K, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tuple(process.bound_terms(x, x0, xt, s, t, weighting)), logits, fast_mode=True, rtol=1e-4
    )
    (grad,) = torch.autograd.grad(process.kl(logits, x0, xt, s, t, weighting).sum(), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("schedule", [VQDiffusionPaper(), VQDiffusionReleased()])
@pytest.mark.parametrize("confidence", [0.0, 16.0])
def test_float32_holds_where_little_is_replaced_and_the_network_is_sure(schedule, weighting, confidence):
    B, L, num_classes = 8, 16, 1024
    process = MaskAndReplace(num_classes, schedule)
    generator = torch.Generator().manual_seed(4)
    x0 = torch.randint(num_classes, (B, L), generator=generator)
    t = torch.linspace(0.01, 1.0, B, dtype=torch.float64)
    s = t - 0.01
    xt = process.sample(x0, t, Noise(0, torch.arange(B)))
    wrong = torch.rand(B, L, generator=generator) < 0.2
    xt = torch.where(wrong & process.is_known(xt), (xt + 1) % num_classes, xt)
    logits = torch.randn(B, L, num_classes, generator=generator) + confidence * F.one_hot(x0, num_classes)
    low, high = logits.clone().requires_grad_(), logits.double().requires_grad_()
    kl_low, kl_high = (process.kl(x, x0, xt, s, t, weighting) for x in (low, high))
    torch.testing.assert_close(kl_low.double(), kl_high, rtol=3e-5, atol=3e-5)
    (grad_low,), (grad_high,) = (torch.autograd.grad(k.sum(), x) for k, x in ((kl_low, low), (kl_high, high)))
    torch.testing.assert_close(grad_low.double(), grad_high, rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_many_rows_in_chunks_equal_the_posterior_formed_whole(weighting):
    B, L, num_classes = 3, 900, 130
    process = MaskAndReplace(num_classes, VQDiffusionPaper())
    generator = torch.Generator().manual_seed(5)
    x0 = torch.randint(num_classes, (B, L), generator=generator)
    xt = process.sample(x0, 0.5, Noise(0, torch.arange(B)))
    logits = torch.randn(B, L, num_classes, dtype=torch.float64, generator=generator).requires_grad_()
    one_hot = F.one_hot(x0, num_classes).double().log()
    truth = process.posterior(one_hot, xt, 0.4, 0.5, "posterior")
    model = process.posterior(logits.log_softmax(-1), xt, 0.4, 0.5, weighting)
    formed = torch.where(truth > -torch.inf, truth.exp() * (truth - model), 0.0).sum(-1)
    fused = process.kl(logits, x0, xt, 0.4, 0.5, weighting)
    torch.testing.assert_close(fused, formed, rtol=1e-9, atol=1e-10)


def test_s_zero_is_the_cross_entropy_of_what_is_not_certain():
    process = Uniform(K, Linear())
    x0, xt = pairs(process, 0.4)
    logits = torch.randn(1, x0.shape[1], K, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    kl, cross_entropy = process.bound_terms(logits, x0, xt, 0.0, 0.4, "posterior")
    torch.testing.assert_close(kl, cross_entropy, rtol=1e-9, atol=1e-12)


def test_half_precision_logits_are_summed_in_float32():
    process = MaskAndReplace(64, VQDiffusionPaper())
    x0 = torch.arange(64)[None]
    xt = process.sample(x0, 0.5, Noise(0, torch.arange(1)))
    logits = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(7)).bfloat16().requires_grad_()
    kl = process.kl(logits, x0, xt, 0.4, 0.5, "posterior")
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, process.kl(logits.float(), x0, xt, 0.4, 0.5, "posterior"))
    (grad,) = torch.autograd.grad(kl.sum(), logits)
    assert grad.dtype == torch.bfloat16
