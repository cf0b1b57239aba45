import csv

import pytest

from trilemma.errors import UserError
from trilemma.loggers.csv_file import CSVLogger


def rows(folder):
    with (folder / "metrics.csv").open() as handle:
        return list(csv.DictReader(handle))


def log(logger, *steps, **metrics):
    for step in steps:
        logger.log_metrics({"epoch": 0, **{name: value * step for name, value in metrics.items()}}, step)


def test_every_row_is_on_disk_at_once(tmp_path):
    logger = CSVLogger(tmp_path)
    for step in range(5):
        log(logger, step, loss=0.1)
        assert [float(row["loss"]) for row in rows(tmp_path)] == [0.1 * i for i in range(step + 1)]


def test_new_column(tmp_path):
    logger = CSVLogger(tmp_path)
    log(logger, 1, a=1.0)
    log(logger, 2, b=1.0)
    log(logger, 3, a=1.0)
    assert [(row["a"], row["b"]) for row in rows(tmp_path)] == [("1.0", ""), ("", "2.0"), ("3.0", "")]


def test_resume_leaves_no_duplicate_and_loses_nothing(tmp_path):
    log(CSVLogger(tmp_path), 9, 19, 19, 29, 39, loss=1.0)
    resumed = CSVLogger(tmp_path)  # from a checkpoint between 19 and 29
    log(resumed, 29, loss=-1.0)
    log(resumed, 29, 39, lr=2.0)
    expected = [("9", "9.0"), ("19", "19.0"), ("19", "19.0"), ("29", "-29.0"), ("29", ""), ("39", "")]
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == expected
    assert rows(tmp_path)[-1]["lr"] == "78.0"


def test_nothing_is_touched_before_the_first_row(tmp_path):
    log(CSVLogger(tmp_path), 9, 19, loss=1.0)
    before = (tmp_path / "metrics.csv").read_bytes()
    CSVLogger(tmp_path)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_half_a_line_is_dropped(tmp_path):
    log(CSVLogger(tmp_path), 9, 19, loss=1.0)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "29,0,2")
    log(CSVLogger(tmp_path), 39, loss=1.0)
    assert [row["step"] for row in rows(tmp_path)] == ["9", "19", "39"]


def test_names_with_commas(tmp_path):
    CSVLogger(tmp_path).log_metrics({'a,"b"': 1.5}, 3)
    assert rows(tmp_path)[0]['a,"b"'] == "1.5"


def test_unwritable(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"cannot write .*metrics\.csv"):
        CSVLogger(tmp_path / "run").log_metrics({"a": 1.0}, 0)
