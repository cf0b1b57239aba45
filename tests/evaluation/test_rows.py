import json
import math

import pytest
from rich.console import Console

from trilemma.errors import UserError
from trilemma.evaluation.protocol import Machine, Protocol
from trilemma.evaluation.rows import kept_row, move_aside, new_row, read_row, write_row
from trilemma.evaluation.samples import Evaluation
from trilemma.evaluation.table import cost_table, print_row, print_sweep, row_table

NAME = "FD[toy-12345678]"


def protocol(**changes) -> Protocol:
    machine = Machine(cpu="a CPU", num_cores=2, num_threads=1, accelerator=None, torch_version="2.13.0")
    usual = {
        "data": "toy_set",
        "data_fingerprint": "ab" * 32,
        "split": "train",
        "num_images": 60,
        "extractor": "toy-12345678",
        "model": "a model",
        "weights": "ema",
        "seed": 0,
        "sampler": {"_target_": "a.Sampler", "num_steps": 4, "temperature": 0.9},
        "guidance": {"_target_": "a.Guidance", "scale": 2.0},
        "machine": machine,
    }
    return Protocol(**usual | changes)


def ledger():
    return {
        "work": {
            "subnetworks": [{"name": "network", "evaluations_per_image": 8.0}],
            "flops_per_image": 2e9,
            "num_parameters": 3_000_000,
        },
        "latency": {"p50_seconds": 0.25, "p95_seconds": 0.5},
        "throughput": {"images_per_second": 12.0, "batch_size": 16},
        "memory": [{"measure": "allocated", "batch_size": 16, "peak_bytes": 2**22}],
    }


def test_a_row_is_read_back(tmp_path):
    evaluation = Evaluation({"psnr": math.inf, "ratio": math.nan, "recall": 0.5}, {"recall": 0.75}, {"recall": 1.0})
    path = tmp_path / "deep" / "row.json"
    write_row(path, new_row(protocol(), evaluation, "aa"))
    content = read_row(path)
    assert content == json.loads(path.read_text())
    assert content["protocol"]["tier"] == "smoke"
    assert content["protocol"]["machine"]["cpu"] == "a CPU"
    assert float(content["metrics"]["psnr"]) == math.inf
    assert math.isnan(float(content["metrics"]["ratio"]))
    assert (content["floor"], content["copycat"]) == ({"recall": 0.75}, {"recall": 1.0})
    assert content["samples_sha256"] == "aa"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("{", "no JSON"),
        ("[1]", "not a row of results"),
        ('{"protocol": {}}', "not a row of results"),
        ('{"protocol": {}, "metrics": {}, "floor": {}}', "format 1, not 2"),
    ],
)
def test_what_is_no_row_is_named(tmp_path, text, words):
    path = tmp_path / "row.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_row(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, True),
        ({"machine": Machine("another", 4, 4, None, "2.12.0"), "budget": {"note": "x"}, "run": "second"}, True),
        ({"seed": 1}, False),
        ({"checkpoint": "other"}, False),
        ({"num_images": 61}, False),
        ({"sampler": {"num_steps": 5}}, False),
        ({"extractor": "toy-00000000"}, False),
        ({"metrics": 0}, False),
    ],
)
def test_a_row_is_kept_for_its_own_protocol_only(tmp_path, changes, kept):
    path = tmp_path / "row.json"
    row = new_row(protocol(), Evaluation({"recall": 0.5}, {}), "aa")
    write_row(path, row)
    assert kept_row(path, protocol(**changes)) == (row if kept else {})


@pytest.mark.parametrize("text", ['{"protocol": ', '{"protocol": {}, "metrics": {}, "floor": {}}', None])
def test_what_is_in_the_way_is_moved_with_all_that_belongs_to_it(tmp_path, capsys, text):
    """A damaged row, one of an older format, and one of another protocol."""
    path = tmp_path / "row.json"
    if text is None:
        write_row(path, new_row(protocol(seed=5), Evaluation({}, {}), "aa"))
    else:
        path.write_text(text)
    before = path.read_bytes()
    for name in ("row.png", "row-neighbours.png", "row.npz"):
        (tmp_path / name).write_text(name)
    assert kept_row(path, protocol()) == {}
    move_aside(path)
    assert not list(tmp_path.glob("row.*"))
    [aside] = tmp_path.glob("row-*.json")
    assert aside.read_bytes() == before
    for ending in (".png", "-neighbours.png", ".npz"):
        assert aside.with_name(aside.stem + ending).read_text() == f"row{ending}"
    assert capsys.readouterr().out.count(f"it is kept as {aside.name}, and measured again") == 1
    assert kept_row(tmp_path / "none.json", protocol()) == {}
    move_aside(tmp_path / "none.json")


def cells_of(table):
    names, *columns = ([str(cell) for cell in column.cells] for column in table.columns)
    return dict(zip(names, zip(*columns, strict=True), strict=True))


def test_the_table_shows_floor_error_and_tier():
    evaluation = Evaluation(
        {NAME: -1e-12, "FD_stderr[toy-12345678]": 0.25, "recall": 0.5, "class_share/a": 0.25, "class_share/b": 0.75},
        {NAME: 0.125, "recall": 0.875, "class_share/a": 0.5, "class_share/b": 0.5},
        {NAME: 0.0625, "recall": 1.0, "class_share/a": 0.375, "class_share/b": 0.625},
    )
    row = new_row(protocol(), evaluation, "aa")
    row["ledger"] = ledger()
    row["likelihood"] = {"kind": "bound", "unit": "token", "bits_per_dim": 2.5, "bits_standard_error": 0.01}
    row["two_stage"] = {
        "codec": {"psnr": 24.0},
        "oracle": {NAME: 0.5},
        "code_bits_per_image": 343.0,
        "prior_bits_per_image": None,
    }
    console = Console(width=80)
    with console.capture() as captured:
        print_row(row, console)
    text = captured.get()
    cells = cells_of(row_table(row)) | cells_of(cost_table(row))
    assert cells["Fréchet distance ↓"] == ("0 ±0.25", "0.5", "0.125", "0.0625")
    assert cells["class shares, min to max"] == ("0.25–0.75", "", "0.50–0.50", "0.38–0.62")
    assert "quality   Fréchet distance ↓: 0 ±0.25, held-out images 0.125" in text
    assert "speed     images per second ↑: 12, batch 16, 8 calls an image" in text
    assert "…" not in text
    assert all(cell in text for line in cells.values() for cell in line)
    assert cells["bits per token (bound)"][0] == "<= 2.5 ±0.01"
    assert cells["calls of network per image"][0] == "8"
    assert cells["GFLOP per image"][0] == "2"
    assert cells["codec: PSNR ↑"][0] == "24"
    assert "bits per image, prior" not in cells
    assert "FD_stderr[toy-12345678]" not in cells
    assert "smoke" in text


def test_a_sweep_is_one_line_a_row_under_its_model():
    rows = [
        new_row(protocol(sampler={"num_steps": n}), Evaluation({NAME: float(n), "coverage": 0.5}, {}), "aa")
        for n in (4, 8)
    ]
    console = Console(width=80)

    def lines(given):
        with console.capture() as captured:
            print_sweep(given, console)
        return [line.split() for line in captured.get().splitlines() if line.strip()[:1].isdigit()]

    assert lines(rows) == [["4", "2.0", "unconditional", "4", "0.5"], ["8", "2.0", "unconditional", "8", "0.5"]]
    rows[1]["ledger"] = ledger()
    rows[1]["protocol"]["seed"] = 3
    last = [
        line.replace(",", "").split()
        for line in ("4 2.0 unconditional 4 0.5", "8 2.0 unconditional, seed 3 8 0.5 8 12")
    ]
    assert [[word.strip(",") for word in line] for line in lines(rows[::-1])] == last
