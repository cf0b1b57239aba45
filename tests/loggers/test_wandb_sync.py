"""`make sync` against a server on the loopback."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trilemma.loggers import sync
from trilemma.loggers.wandb import WandbLogger
from trilemma.runs.lock import run_lock
from wandb_server import KEY, nowhere, wandb_server  # noqa: F401

pytestmark = pytest.mark.usefixtures("nowhere")


def offline_run(folder, run_id, *rows):
    log = WandbLogger(project="p", run_id=run_id, group="g", save_dir=str(folder), mode="offline")
    for row in rows:
        log.log_metrics({"x": row})
    log.finalize("success")


def logs(top):
    return sorted(Path(top).rglob("*.wandb"))


def age(path):
    """As if it had been written an hour ago."""
    os.utime(path, (time.time() - 3600,) * 2)


@pytest.fixture
def login(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        yield received


def test_every_segment_is_sent_once_in_order_and_a_torn_one_stops_no_other(tmp_path, login, capsys):
    offline_run(tmp_path, "r", *range(0, 5))
    offline_run(tmp_path, "r", *range(5, 10))
    torn = logs(tmp_path)[0]
    os.truncate(torn, torn.stat().st_size - 150)
    age(torn)
    assert sync.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2].partition(" up to")[0] for line in out] == ["sent", "sent"]
    assert "torn" in out[0]
    assert login.others == []  # no reports about the machine
    rows = [row["x"] for row in login.rows]
    assert rows == [*range(len(rows) - 5), *range(5, 10)]
    assert len(rows) >= 5
    assert [row["_step"] for row in login.rows] == rows

    assert sync.main([str(tmp_path)]) == 0
    assert [row["x"] for row in login.rows] == rows
    assert "nothing to send" in capsys.readouterr().out


def test_a_run_that_is_still_written_is_left_for_later(tmp_path, login, capsys):
    offline_run(tmp_path, "r", 1)
    (log,) = logs(tmp_path)
    age(log)
    code = "import sys; from trilemma.loggers import sync; sys.exit(sync.main(sys.argv[1:]))"
    with run_lock(tmp_path):  # POSIX locks do not exclude the process that holds them
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "left for later" in done.stdout
    assert login.rows == []
    assert sync.main([str(tmp_path)]) == 0
    assert [row["x"] for row in login.rows] == [1]


def test_what_cannot_be_read_is_reported_and_not_marked(tmp_path, monkeypatch, capsys):
    offline_run(tmp_path, "r", 1)
    (log,) = logs(tmp_path)
    log.write_bytes(b"no log")
    age(log)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        assert sync.main([str(tmp_path)]) == 1
    assert "not sent" in capsys.readouterr().out
    assert not log.with_suffix(".wandb.synced").exists()


def test_without_a_login_one_line_and_status_2(tmp_path, capsys):
    offline_run(tmp_path, "r", 1)
    capsys.readouterr()
    assert sync.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert "no API key" in err[0]
    assert "wandb login" in err[0]


def test_without_a_server_one_line_and_status_2(tmp_path, monkeypatch, capsys):
    offline_run(tmp_path, "r", 1)
    capsys.readouterr()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert sync.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert "1 runs to send, and http://127.0.0.1:9 cannot be reached" in err[0]


def test_a_folder_that_is_not_there(tmp_path, capsys):
    assert sync.main([str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_nothing_to_send_needs_no_login(tmp_path):
    assert sync.main([str(tmp_path)]) == 0
