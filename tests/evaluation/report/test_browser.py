"""The report in a real browser, where there is one."""

import re

import pytest
from rows import written

from browser import console_and_requests, needs_browser, num_pdf_pages, probe
from trilemma.evaluation.report import Entry, write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rows = [
        written(
            folder / "rows",
            f"r{steps}",
            fd=1 + 3 / steps,
            steps=steps,
            seconds=0.01 * steps,
            coverage=0.9 - 0.5 / steps,
        )
        for steps in (5, 10, 25, 50)
    ]
    name = "a_model/with_a_name_of_many_words_and_" + "x" * 60
    return write_report([Entry(name, tuple(rows))], folder, title=f"Toys of {name}")


def test_nothing_is_asked_for_and_nothing_complains(report, tmp_path):
    assert console_and_requests(report, tmp_path) == ([], [])
    chatty = tmp_path / "chatty.html"
    chatty.write_text("<!doctype html><img src='http://example.invalid/x.png'><script>console.error('boo')</script>")
    (said,), asked = console_and_requests(chatty, tmp_path)
    assert "boo" in said
    assert asked == ["http://example.invalid/x.png"]  # so that the first line could have failed


def test_a_telephone_shows_it_without_scrolling_sideways(report, tmp_path):
    found = probe(report, tmp_path, width=390)
    assert (found["width"], found["content"]) == (390, 390)
    assert found["background"] == "rgb(255, 255, 255)"
    assert found["broken"] == 0
    assert len(found["plots"]) == 4
    assert min(found["plots"]) > 8
    assert found["overlaps"] == []
    assert found["details"] == [False, True]  # a link to a protocol opens it


def test_the_table_sorts_and_filters_and_keeps_its_reference_lines_last(report, tmp_path):
    steps = [str(steps) for steps in (5, 10, 25, 50)]
    as_written, up, down, *filtered = probe(report, tmp_path, width=1000)["orders"]
    assert as_written[:4] == up[:4] == steps
    assert down[:4] == steps[::-1]
    assert as_written[4:] == up[4:] == down[4:] == ["", "", ""]
    assert filtered == [down, ["10", "", "", ""]]


def test_a_dark_desktop(report, tmp_path):
    found = probe(report, tmp_path, width=1400, dark=True)
    assert found["content"] == 1400
    assert found["background"] == "rgb(20, 23, 27)"
    assert found["overlaps"] == []


def test_protocols_are_open_on_paper(report, tmp_path):
    text = re.sub(r"<details>.*?</details>", "", report.read_text(), flags=re.DOTALL)
    (tmp_path / "without.html").write_text(text)
    assert num_pdf_pages(report, tmp_path) > num_pdf_pages(tmp_path / "without.html", tmp_path) > 1
