"""Whether draws are from a distribution."""

import torch
from scipy import stats


def assert_drawn_from(drawn, p):
    """Chi-square of int64 draws [N] against p [S]; states of probability zero never appear."""
    counts = torch.bincount(drawn, minlength=len(p)).double()
    assert counts[p == 0].sum() == 0
    expected = len(drawn) * p / p.sum()
    common = expected > 10
    rare = (counts[~common].sum(), expected[~common].sum())
    statistic = ((counts - expected) ** 2 / expected)[common].sum()
    if rare[1] > 1:
        statistic = statistic + (rare[0] - rare[1]) ** 2 / rare[1]
    else:
        assert rare[0] < 10
    assert stats.chi2.sf(float(statistic), max(1, int(common.sum()))) > 1e-4
