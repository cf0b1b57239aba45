import numpy as np
import pytest
import torch

from trilemma.codecs.usage import CodebookUsage

K = 20


def test_figures_equal_numpy_counts_over_the_whole_set():
    torch.manual_seed(0)
    weights = torch.rand(K) ** 6
    weights[[2, 5]] = 0
    batches = [torch.multinomial(weights, 60, replacement=True).view(5, 3, 4) for _ in range(7)]
    usage = CodebookUsage(K)
    for batch in batches:
        usage.update(batch)
    found = usage.compute()

    counts = np.bincount(torch.cat(batches).numpy().ravel(), minlength=K)
    p = counts / counts.sum()
    seen = p[p > 0]
    assert found["perplexity"].item() == pytest.approx(np.exp(-(seen * np.log(seen)).sum()), rel=1e-6)
    assert found["usage"].item() == pytest.approx((counts > 0).mean())
    assert found["well_used"].item() == pytest.approx((p > 0.1 / K).mean())
    assert found["dead"].item() == (counts == 0).sum()
    assert 0 < (p > 0.1 / K).sum() < (counts > 0).sum()  # the case tells the two shares apart


def test_even_use_has_perplexity_k_and_one_code_has_one():
    usage = CodebookUsage(K)
    usage.update(torch.arange(K))
    assert usage.compute()["perplexity"].item() == pytest.approx(K)
    usage.reset()
    usage.update(torch.full((9,), 4))
    assert usage.compute()["perplexity"].item() == pytest.approx(1)
    assert usage.compute()["dead"].item() == K - 1


def test_processes_are_summed_not_averaged():
    assert CodebookUsage(K)._reductions["counts"](torch.tensor([[1, 2], [3, 5]])).tolist() == [4, 7]
