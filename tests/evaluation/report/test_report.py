import json
import re
from pathlib import Path

import pytest
from rows import row, written

from pages import check_page
from trilemma.errors import UserError
from trilemma.evaluation.report import (
    Entry,
    Row,
    check_comparable,
    comparable_among,
    read_row,
    write_frontier,
    write_report,
)
from trilemma.evaluation.report.glance import corners_of
from trilemma.evaluation.report.tables.group import groups_of
from trilemma.figures.scatter import Axis, Dot, Panel, Series

HOSTILE = '<script>alert(1)</script>"$x_{$&'
RESULTS = Path(__file__).parents[3] / "docs" / "results"


def entries(folder):
    sweep = [
        written(folder, f"vq-{steps}-{scale:g}", fd=1 + 3 / steps / scale, steps=steps, scale=scale, seconds=0.01 * steps * scale,
                coverage=0.9 - 0.5 / steps)
        for scale in (1.0, 2.0) for steps in (5, 10)
    ]  # fmt: skip
    gans = [
        written(folder, f"gan-{i}", fd=3 + 0.1 * i, steps=None, scale=None, seconds=0.002, two_stage=False, seed=i,
                checkpoint=str(i) * 64) for i in range(3)
    ]  # fmt: skip
    return [Entry("toy/vq", tuple(sweep)), Entry("toy/gan", tuple(gans))]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return write_report(entries(folder / "rows"), folder, title="Toys")


def test_the_page_is_one_file_that_needs_no_other(report):
    read = check_page(report.read_text())
    assert len(read.sources) == 2 * 7  # a grid and the closest pairs of each row
    assert read.tags.count("svg") == 4
    assert sorted(path.name for path in report.parent.iterdir() if path.is_file()) == [
        "report.html", "samples.png", "trilemma.png", "trilemma.svg",
    ]  # fmt: skip


def test_every_line_leads_to_its_whole_protocol(report):
    text = report.read_text()
    names = ["vq-5-1", "vq-10-1", "vq-5-2", "vq-10-2", "gan-0", "gan-1", "gan-2"]
    read = check_page(text)
    assert {link for link in read.links if link.startswith("#row-")} == {f"#row-{i}" for i in range(1, 8)}
    for i, name in enumerate(names, start=1):
        start = text.index(f'<div id="row-{i}">')
        block = text[start : text.index("</details>", start)]
        given = json.loads((report.parent / "rows" / f"{name}.json").read_text())
        assert f">{name}<" in block
        for key, value in given["protocol"].items():
            if not isinstance(value, dict):
                assert f'<th scope="row">{key}</th><td>{"none" if value is None else value}</td>' in block
        for value in given["metrics"].values():
            assert f"<td>{value}</td>" in block
        assert given["samples_sha256"] in block
        assert "sampler.num_steps" in block or name.startswith("gan")


def test_corners_are_named(report):
    text = "".join(check_page(report.read_text()).text)
    assert (
        "Best quality: toy/vq (10 steps, Ancestral, guidance 2): FD 1.15, where held-out real images have 0.18" in text
    )
    assert "Most speed: toy/gan: an image in 2 ms" in text
    assert "No setting is best at all three." in text


def test_the_page_is_the_same_each_time(report, tmp_path):
    again = write_report(entries(tmp_path / "rows"), tmp_path, title="Toys")
    for name in ("report.html", "samples.png", "trilemma.png", "trilemma.svg"):
        assert (again.parent / name).read_bytes() == (report.parent / name).read_bytes(), name


@pytest.mark.parametrize("num", [1, 12])
def test_hostile_names_are_text(tmp_path, num):
    given = [
        Entry(f"{HOSTILE} {i}", (row(HOSTILE, model=HOSTILE, fd=1.0 + i, data=None, condition=HOSTILE),))
        for i in range(num)
    ]
    for entry in given:
        entry.rows[0].protocol["data"] = HOSTILE
        entry.rows[0].protocol["sampler"][HOSTILE] = HOSTILE
    text = write_report(given, tmp_path, title=HOSTILE).read_text()
    read = check_page(text)
    assert text.count("<script") == 1
    assert "".join(read.text).count(HOSTILE) > 5 * num


def test_plots_of_many_settings_show_their_fronts_first(tmp_path):
    rows = tuple(row(f"r{n}", steps=n, fd=1.0 + n, seconds=0.01 * n) for n in range(1, 15))
    text = write_report([Entry("m", rows)], tmp_path, title="t").read_text()
    first, everything = text.split("All 14 settings")
    assert first.count("<svg") == everything.count("<svg") == 4
    few = write_report([Entry("m", rows[:3])], tmp_path, title="t").read_text()
    assert "settings</summary>" not in few
    x, y = Axis(label="x", larger_is_better=False), Axis(label="y", larger_is_better=False)
    dots = {"a": [(1, 2), (2, 3)], "b": [(3, 9)], "c": [(5, 1)]}
    series = [
        Series(name=name, index=i, dots=tuple(Dot(x=at, y=up) for at, up in found))
        for i, (name, found) in enumerate(dots.items())
    ]
    front = Panel(title="t", x=x, y=y, series=tuple(series)).front()
    assert [(one.name, one.index, [dot.x for dot in one.dots]) for one in front.series] == [
        ("a", 0, [1]),
        ("c", 2, [5]),
    ]


def test_smoke_rows_carry_a_banner(tmp_path):
    read = check_page(write_report([Entry("m", (row(num_images=200),))], tmp_path, title="t").read_text())
    assert read.text.count("smoke") == 4  # above, in the table, at the protocol and in it
    assert "smoke" not in check_page(write_report([Entry("m", (row(),))], tmp_path, title="t").read_text()).text


def test_times_of_several_machines_are_called_out(tmp_path):
    other = {"cpu": "Other", "num_cores": 8, "num_threads": 8, "accelerator": "Toy GPU", "torch_version": "0"}
    rows = (row("a"), row("b", scale=1.0, machine=other))
    text = "".join(check_page(write_report([Entry("m", rows)], tmp_path, title="t").read_text()).text)
    assert "Times come from 2 machines (1 thread of Invented CPU; Toy GPU)" in text
    assert "Most speed: not comparable, times come from several machines" in text


def test_times_on_busy_cores_are_marked_and_not_ranked(tmp_path):
    quick, slow = row("quick", seconds=0.001, waited=0.4), row("slow", scale=1.0, seconds=0.5, waited=0.01)
    text = "".join(check_page(write_report([Entry("m", (quick, slow))], tmp_path, title="t").read_text()).text)
    assert text.count("on busy cores") == 2  # latency and images a second of one line
    assert "Times marked ~ were taken while other programs held the cores" in text
    assert "an image in 500 ms" in text
    [speed] = [corner for corner in corners_of(groups_of(Entry("m", (quick,)))) if corner.title == "Most speed"]
    assert speed.before == "not ranked, other programs held the cores"


def test_a_floor_of_fewer_images_is_called_out(tmp_path):
    one = row(num_images=50_000)
    assert "There are only" not in write_report([Entry("m", (one,))], tmp_path, title="t").read_text()
    one.content["floor"]["num_images"] = 10_000.0
    assert "There are only 10000 held-out images" in write_report([Entry("m", (one,))], tmp_path, title="t").read_text()


def test_settings_that_differ_in_the_condition_are_two_lines(tmp_path):
    one, other = row("a"), row("b", fd=3.0)
    other.protocol["condition"] = "label: 7"
    write_frontier([one, other], tmp_path)
    words = re.findall(r">([^<>]+)</text>", (tmp_path / "frontier.svg").read_text())
    assert {"Ancestral, guidance 2", "Ancestral, guidance 2, label 7"} <= set(words)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", "mnist_dynamic"),
        ("data_fingerprint", "e" * 64),
        ("extractor", "other"),
        ("split", "val"),
        ("held_out", "val"),
        ("num_images", 5000),
        ("metrics", 1),
        ("preprocessing", "resized"),
    ],
)
def test_rows_that_are_not_comparable_are_refused(tmp_path, key, value):
    one, other = row("first"), row("second", scale=1.0)
    was = one.protocol[key]
    other.protocol[key] = value
    for call in (
        lambda: check_comparable([one, other]),
        lambda: write_frontier([one, other], tmp_path),
        lambda: write_report([Entry("a", (one,)), Entry("b", (other,))], tmp_path, title="t"),
    ):
        with pytest.raises(UserError, match="not comparable") as caught:
            call()
        line = str(caught.value)
        assert "\n" not in line
        assert all(str(word) in line for word in ("first", "second", was, value, f"same {key}"))
    assert not list(tmp_path.iterdir())


def test_of_rows_found_together_the_largest_group_is_taken_and_the_others_are_named():
    given = [row("few", num_images=200), row("a"), row("other"), row("b", scale=1.0)]
    given[2].protocol["extractor"] = "another"
    taken, lines = comparable_among(given)
    assert [one.name for one in taken] == ["a", "b"]
    assert [line.partition(" was")[0] for line in lines] == ["few", "other"]
    assert "a number of images of 200, the 2 rows of the report with 2000" in lines[0]
    assert comparable_among(given[:1]) == (given[:1], [])
    assert comparable_among([]) == ([], [])


def test_nothing_twice_and_not_nothing(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        write_report([], tmp_path, title="t")
    with pytest.raises(UserError, match="no rows"):
        write_frontier([], tmp_path)
    with pytest.raises(UserError, match="two entries are called 'm'"):
        write_report([Entry("m", (row(),)), Entry("m", (row(fd=1.0),))], tmp_path, title="t")
    twin = row("b")
    twin.content["samples_sha256"] = row("a").content["samples_sha256"]
    with pytest.raises(UserError, match="a and b are the same samples"):
        check_comparable([row("a"), twin])
    with pytest.raises(UserError, match="different checkpoints"):
        write_frontier([row("a"), row("b", checkpoint="b" * 64)], tmp_path)


def test_rows_are_read_with_their_pictures(tmp_path):
    found = written(tmp_path, "a")
    assert (found.samples, found.neighbours) == (tmp_path / "a.png", tmp_path / "a-neighbours.png")
    (tmp_path / "a.png").unlink()
    assert read_row(tmp_path / "a.json").samples is None
    for text, words in (("{", "no JSON"), ("[]", "not a row of results"), ('{"protocol": {}}', "not a row of results")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_row(tmp_path / "b.json")
    with pytest.raises(UserError, match="cannot read"):
        read_row(tmp_path / "missing.json")


def test_the_results_of_the_repository_make_a_frontier_and_a_report(tmp_path):
    rows = [read_row(path) for path in sorted(RESULTS.glob("mnist-vq_diffusion-*.json"))]
    checkpoint = rows[0].protocol["checkpoint"]
    rows = [one for one in rows if one.protocol["checkpoint"] == checkpoint]
    assert len(rows) > 1
    assert write_frontier(rows, tmp_path).name == "frontier.png"
    text = (tmp_path / "frontier.svg").read_text()
    assert all(words in text for words in ("function evaluations per image", "held-out real images", "Pareto front"))
    read = check_page(write_report([Entry("vq", tuple(rows))], tmp_path, title="t").read_text())
    shown = {value for value, _ in read.data}
    assert {repr(one.number("metrics", "{FD}")) for one in rows} <= shown


def test_the_frontier_counts_calls_and_seconds_where_rows_have_a_ledger(tmp_path):
    rows = [
        row(f"r{steps}{scale}", steps=steps, scale=scale, seconds=0.01 * steps)
        for steps in (5, 50)
        for scale in (1.0, 2.0)
    ]
    write_frontier(rows, tmp_path)
    words = re.findall(r">([^<>]+)</text>", (tmp_path / "frontier.svg").read_text())
    assert "function evaluations per image (fewer is better)" in words
    assert "seconds for one image (less is better)" in words
    assert {"Ancestral, guidance 1", "Ancestral, guidance 2"} <= set(words)
    write_frontier([*rows[:-1], Row("bare", {k: v for k, v in rows[-1].content.items() if k != "ledger"})], tmp_path)
    text = (tmp_path / "frontier.svg").read_text()
    assert "function evaluations" not in text
    assert "seconds" not in text
