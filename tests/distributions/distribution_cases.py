"""Distributions that the tests run over, each of B images of small size."""

import pytest
import torch

from trilemma.distributions.bernoulli import Bernoulli
from trilemma.distributions.categorical import Categorical
from trilemma.distributions.categorical_levels import CategoricalLevels
from trilemma.distributions.discretised_gaussian import DiscretisedGaussian
from trilemma.distributions.levels import level_value
from trilemma.distributions.logistic import DiscretisedLogistic
from trilemma.distributions.logistic_mixture import DiscretisedLogisticMixture

B, C, H, W, M = 3, 2, 2, 3, 4
K = 7


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mixture(num_levels=K, channels=C, dtype=torch.float64, coupling=1.0, num=B):
    couplings = channels * (channels - 1) // 2
    return DiscretisedLogisticMixture(
        random(num, M, H, W, seed=1, dtype=dtype),
        0.5 * random(num, M, channels, H, W, seed=2, dtype=dtype),
        -2 + 0.5 * random(num, M, channels, H, W, seed=3, dtype=dtype),
        coupling * random(num, M, couplings, H, W, seed=4, dtype=dtype).tanh() if couplings else None,
        num_levels,
    )


MAKERS = {
    "categorical": lambda dtype: Categorical(2 * random(B, C, H, W, K, dtype=dtype)),
    "categorical levels": lambda dtype: CategoricalLevels(2 * random(B, C, H, W, K, dtype=dtype)),
    "bernoulli": lambda dtype: Bernoulli(random(B, C, H, W, dtype=dtype)),
    "bits": lambda dtype: Bernoulli(random(B, C, H, W, dtype=dtype), off=0.0),
    "logistic": lambda dtype: DiscretisedLogistic(
        random(B, C, H, W, dtype=dtype), -1 + random(B, C, H, W, seed=1, dtype=dtype), K
    ),
    "gaussian": lambda dtype: DiscretisedGaussian(
        random(B, C, H, W, dtype=dtype), -1 + random(B, C, H, W, seed=1, dtype=dtype), K
    ),
    "mixture of one channel": lambda dtype: mixture(channels=1, dtype=dtype),
}
"""Discrete distributions whose elements are independent, by dtype of the parameters."""

DISCRETE = [pytest.param(maker, id=name) for name, maker in MAKERS.items()]


def values(distribution):
    """What an element can be, [N]."""
    if isinstance(distribution, Categorical):
        return torch.arange(K)
    if isinstance(distribution, Bernoulli):
        return torch.tensor([distribution.off, 1.0], dtype=torch.float64)
    return level_value(torch.arange(distribution.num_levels), distribution.num_levels, torch.float64)


def table(distribution):
    """Log-probability of each value at each element, [N, B, ...]."""
    shape = distribution.mean.shape
    return torch.stack([distribution.log_prob(value.expand(shape)) for value in values(distribution)])
