import math

import pytest
from rows import row
from scipy import stats

from trilemma.evaluation.report import Entry
from trilemma.evaluation.report.tables.group import Group, groups_of
from trilemma.evaluation.report.tables.quantities import calls_per_image, metric, peak_bytes
from trilemma.evaluation.report.tables.settings import describe, settings_key
from trilemma.evaluation.report.tables.spread import spread

fd, fd_stderr = metric("{FD}"), metric("{FD_stderr}")


def test_spread_is_that_of_scipy():
    values = [1.0, 2.5, 2.0, 7.0]
    found = spread(values)
    assert found.interval == pytest.approx(stats.t.interval(0.95, 3, loc=found.mean, scale=stats.sem(values)))
    assert (spread([3.0]).sd, spread([3.0, 4.0]).interval) == (None, None)
    with pytest.raises(ValueError, match="nothing"):
        spread([])


def test_rows_that_differ_in_seeds_alone_are_one_group():
    rows = (
        row("a", steps=50),
        row("b", steps=5),
        row("c", steps=5, seed=1),
        row("d", steps=5, checkpoint="b" * 64),
        row("e", steps=5, scale=1.0),
        row("f", steps=50, model="other"),
    )
    found = [[one.name for one in group.rows] for group in groups_of(Entry("m", rows))]
    assert found == [["b", "c", "d"], ["a"], ["e"], ["f"]]


def test_rows_of_one_checkpoint_count_as_their_mean():
    rows = (row(fd=1.0), row(fd=3.0, seed=1), row(fd=6.0, checkpoint="b" * 64))
    found = Group("m", rows).spread(fd)
    assert found is not None
    assert (found.mean, found.num) == (4.0, 2)


def test_bars_of_plots():
    one, other, third = row(fd=1.0), row(fd=3.0, seed=1), row(fd=2.0, seed=2)
    assert Group("m", (one,)).interval(fd, fd_stderr) == pytest.approx((1 - 1.96 * 0.05, 1 + 1.96 * 0.05), abs=1e-5)
    assert Group("m", (one,)).interval(fd, metric("none")) is None
    assert Group("m", (one, other)).interval(fd, fd_stderr) == pytest.approx((1.0, 3.0))
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert Group("m", (one, other, third)).interval(fd, fd_stderr) == pytest.approx((2 - half, 2 + half))


def test_settings_in_words():
    assert describe(row()) == "Ancestral, guidance 2"
    assert describe(row(steps=None, scale=None)) == ""
    one = row(scale=1.5)
    one.protocol["sampler"]["truncation"] = 0.86
    one.protocol["guidance"] |= {"start": 0.8, "stop": 0.25}
    one.protocol["condition"] = "none"
    one.protocol["weights"] = "raw"
    assert describe(one) == "Ancestral, truncation 0.86, guidance 1.5 for t in [0.25, 0.8], unconditional, raw weights"


def test_guidance_that_guides_nothing_is_not_named_and_a_whole_number_is_a_number():
    one = row(scale=None)
    one.protocol["guidance"]["_target_"] = "trilemma.samplers.guidance.Guidance"
    assert describe(one) == "Ancestral"
    assert settings_key(row(scale=2)) == settings_key(row(scale=2.0))


def test_numbers_of_the_ledger():
    assert calls_per_image(row(steps=25, scale=2.0)) == 50
    assert peak_bytes(row()) == 900 * 2**20
    assert calls_per_image(row(seconds=None)) is None
    assert peak_bytes(row(seconds=None)) is None


def test_guidance_by_a_classifier_is_told_from_guidance_by_the_model_itself():
    one, other, twin = row(scale=2.0), row(scale=2.0), row(scale=2.0)
    for guided, digest in ((one, "a"), (other, "b"), (twin, "a")):
        guided.protocol["guidance"]["classifier"] = {"experiment": "mnist/noisy_classifier", "sha256": digest * 64}
    assert describe(one) == "Ancestral, classifier guidance 2"
    assert settings_key(one) == settings_key(twin)
    assert len({settings_key(one), settings_key(other), settings_key(row(scale=2.0))}) == 3
