import math
import re

import pytest
from rows import EXTRACTOR, content, row, without

from pages import check_page, page
from trilemma.evaluation.report import Entry, Row, write_report
from trilemma.evaluation.report.page import results_of
from trilemma.evaluation.report.tables.group import groups_of

FD = f"FD[{EXTRACTOR}]"


def table(*entries):
    """Page of the table, followed by stand-ins for what it links to."""
    groups = [group for entry in entries for group in groups_of(entry)]
    anchors = '{% for row in rows %}<i id="row-{{ number(row) }}"></i>{% endfor %}'
    return check_page(page('{% include "results.html" %}' + anchors, title="t", **results_of(groups)))


def numbers(read):
    return [float(value) for value, _ in read.data]


def test_every_number_of_a_line_is_that_of_its_row():
    one = row(fd=1.23456789, seconds=0.0123)
    found = numbers(table(Entry("m", (one,))))
    metrics, floor, ledger = (one.content[part] for part in ("metrics", "floor", "ledger"))
    copy = one.content["copycat"]
    kid, ratios = (
        f"KID[{EXTRACTOR}]",
        {name: metrics[name] / floor[name] for name in ("precision", "recall", "coverage")},
    )
    line = [
        metrics[FD],
        metrics[f"FD_stderr[{EXTRACTOR}]"],
        floor[FD],
        metrics[kid],
        metrics[f"KID_stderr[{EXTRACTOR}]"],
        floor[kid],
    ]
    for name, ratio in ratios.items():
        line += [metrics[name], metrics[f"{name}_stderr"], ratio]
    line += [metrics["label_accuracy"], metrics["authenticity"], one.content["likelihood"]["bits_per_dim"]]
    line += [20.0, ledger["work"]["flops_per_image"], 0.0123, 0.0123 * 1.2]
    line += [ledger["throughput"]["images_per_second"], 64.0, 8_700_000.0, 900.0 * 2**20]
    shares = ("precision", "recall", "coverage", "label_accuracy", "authenticity")
    references = [floor[FD], floor[kid], *(floor[s] for s in shares), copy[FD], copy[kid], *(copy[s] for s in shares)]
    assert found == line + references
    assert ratios["precision"] == metrics["precision_ratio"]
    assert ratios["coverage"] == metrics["coverage_ratio"]


def test_what_is_shown_is_the_number_rounded():
    shown = dict(table(Entry("m", (row(fd=1.23456789, seconds=0.0123),))).data)
    assert shown["1.23456789"] == "1.235"
    assert shown["0.00123456789"] == "1.23"  # KID in thousandths
    assert shown["0.0123"] == "12.3"  # milliseconds
    assert shown["8700000.0"] == "8.7"
    assert shown[repr(900.0 * 2**20)] == "900"


@pytest.mark.parametrize(("kind", "sign"), [("exact", "="), ("bound", "≤"), ("estimate", "~")])
def test_a_likelihood_has_the_sign_of_its_kind(kind, sign):
    made = content()
    made["likelihood"]["kind"] = kind
    text = "".join(table(Entry("m", (Row("r", made),))).text)
    assert f"{sign} 2.944bits/token" in text


def test_repetitions_are_one_line_with_their_spread():
    values = (1.0, 2.0, 4.5)
    rows = tuple(row(f"r{i}", fd=fd, checkpoint=str(i) * 64) for i, fd in enumerate(values))
    read = table(Entry("m", rows))
    mean, sd = 2.5, math.sqrt((1.5**2 + 0.5**2 + 2.0**2) / 2)
    half = 4.302652729911275 * sd / math.sqrt(3)  # Student's t, 2 degrees of freedom
    assert numbers(read)[:4] == pytest.approx([mean, sd, mean - half, mean + half])
    text = "".join(read.text)
    assert "mean ± sd of 3 training runs" in text
    assert "[1] [2] [3]" in text
    assert read.tags.count("tr") == 1 + 1 + 3


def test_two_repetitions_have_no_interval_and_equal_counts_no_spread():
    read = table(Entry("m", (row("a", fd=1.0), row("b", fd=2.0, seed=1))))
    text = "".join(read.text)
    assert "mean ± sd of 2 sample seeds" in text
    assert not re.search(r"\d to \d", text)
    assert text.count("±") == 1 + 2  # in words, and of FD and KID: everything else is equal


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan", "inf", "-inf"])
def test_what_is_not_finite_is_shown_as_it_is(value):
    shown = [text for _, text in table(Entry("m", (row(fd=value),))).data]
    assert shown[0] == str(float(value))


def test_a_repetition_that_failed_is_counted():
    rows = (row("a", fd=1.0), row("b", fd="nan", seed=1), row("c", fd=2.0, seed=2))
    assert "2 of 3" in "".join(table(Entry("m", rows)).text)


PARTS = ("ledger", "likelihood", "two_stage", "copycat", "samples_sha256", "format")


@pytest.mark.parametrize("part", PARTS)
def test_missing_parts_leave_dashes(part):
    read = table(Entry("m", (without(row("a"), part), row("b", fd=3.0, scale=1.0))))
    assert read.text.count("–") == {"ledger": 6, "likelihood": 1}.get(part, 0)
    assert ("Copycat" in read.text) is True
    assert ("Copycat" in table(Entry("m", (without(row("a"), part),))).text) == (part != "copycat")


def test_rows_that_each_lack_a_part_make_a_report(tmp_path):
    rows = tuple(without(row(part, steps=i), part) for i, part in enumerate(PARTS, start=1))
    read = check_page(write_report([Entry("m", rows)], tmp_path, title="t").read_text())
    assert "1 of 6 rows were not timed: the plots over seconds lack them." in read.text


def test_a_row_of_the_three_needed_parts_alone_makes_a_report(tmp_path):
    bare = without(row("a"), "ledger", "likelihood", "two_stage", "copycat", "samples_sha256", "format")
    bare.content["floor"].clear()
    metrics = bare.content["metrics"]
    for name in list(metrics):
        if name != FD:
            del metrics[name]
    read = check_page(write_report([Entry("m", (bare,))], tmp_path, title="t").read_text())
    assert "No row has two numbers to plot against each other." in read.text
    assert "Floor" not in read.text


def test_smoke_rows_say_so():
    assert table(Entry("m", (row(num_images=500),))).text.count("smoke") == 1
    assert table(Entry("m", (row(),))).text.count("smoke") == 0
