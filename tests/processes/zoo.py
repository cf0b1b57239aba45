"""Processes that the tests run over, and times."""

import pytest

from trilemma.processes.categorical.closed_form import Absorbing, MaskAndReplace, Uniform
from trilemma.processes.categorical.schedules import Cosine, LogLinear, VQDiffusionPaper, VQDiffusionReleased

K = 5
PROCESSES = [
    pytest.param(MaskAndReplace(K, VQDiffusionPaper()), id="paper"),
    pytest.param(MaskAndReplace(K, VQDiffusionReleased()), id="released"),
    pytest.param(MaskAndReplace(K, Cosine(1.0)), id="pure masking"),
    pytest.param(MaskAndReplace(K, LogLinear(0.0)), id="pure replacement"),
    pytest.param(Absorbing(K, LogLinear()), id="absorbing"),
    pytest.param(Uniform(K, Cosine()), id="uniform"),
]
TIMES = [(0.0, 0.01), (0.0, 1.0), (0.1, 0.11), (0.3, 0.8), (0.99, 1.0)]
WEIGHTINGS = ["posterior", "joint"]
