import math

import pytest
import torch

from trilemma.evaluation.metrics.accuracy import label_accuracy
from trilemma.evaluation.metrics.histogram import class_counts, class_kl, class_total_variation, modes_hit


def test_counts_and_modes():
    counts = class_counts(torch.tensor([0, 0, 2, 2, 2, 4]), 5)
    assert counts.tolist() == [2, 0, 3, 0, 1]
    assert modes_hit(counts) == 3
    assert modes_hit(torch.tensor([98, 1, 1]), share=0.1) == 1  # at least 3.3 of 100
    assert modes_hit(torch.zeros(4, dtype=torch.int64)) == 0


def test_a_label_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"0\.\.2, got 0\.\.3"):
        class_counts(torch.tensor([0, 3]), 3)


def test_divergence_by_hand():
    p, q = torch.tensor([3, 1]), torch.tensor([2, 2])
    assert class_kl(p, q, smoothing=0.0) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-12)
    # With half a count a class: (3.5, 1.5) / 5 against (2.5, 2.5) / 5.
    assert class_kl(p, q) == pytest.approx(0.7 * math.log(1.4) + 0.3 * math.log(0.6), rel=1e-12)
    assert class_total_variation(p, q) == pytest.approx(0.25, rel=1e-12)


def test_equal_frequencies_do_not_diverge():
    counts = torch.tensor([5, 7, 9])
    assert class_kl(counts, counts) == 0.0
    assert class_total_variation(counts, 3 * counts) == pytest.approx(0.0, abs=1e-15)


def test_collapse_is_finite():
    collapsed, uniform = torch.tensor([1000, 0, 0, 0]), torch.tensor([0, 250, 250, 250])
    assert math.isfinite(class_kl(collapsed, uniform))
    assert class_kl(torch.tensor([1000, 0, 0, 0]), torch.full((4,), 250), smoothing=0.0) == pytest.approx(math.log(4))
    assert class_total_variation(collapsed, uniform) == pytest.approx(1.0, rel=1e-12)


def test_label_accuracy():
    assert label_accuracy(torch.tensor([1, 2, 3, 3]), torch.tensor([1, 2, 3, 0])) == 0.75
    with pytest.raises(ValueError, match="as many labels"):
        label_accuracy(torch.tensor([1]), torch.tensor([1, 1]))
