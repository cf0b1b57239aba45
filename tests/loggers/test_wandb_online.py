"""Runs that have, or hope for, a server."""

import socket
import threading
import time
from contextlib import suppress

import pytest
from PIL import Image

from trilemma.loggers.wandb import WandbLogger
from wandb_server import KEY, history, nowhere, wandb_server  # noqa: F401

pytestmark = pytest.mark.usefixtures("nowhere")


def logger(folder, **options):
    return WandbLogger(**{"project": "p", "run_id": "r", "group": "g", "save_dir": str(folder), **options})


def log_three_rows(log):
    log.log_hyperparams({"lr": 0.1})
    for step in range(3):
        log.log_metrics({"train/loss": 0.5**step}, step=10 * step)
    log.log_image("samples", [Image.new("L", (8, 4), 7)], step=20, caption=["batch 20"])
    log.finalize("success")


def test_an_online_run_arrives(tmp_path, monkeypatch, capfd):
    with wandb_server() as (address, received):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        log = logger(tmp_path, tags=["t"])
        assert log.mode == "online"
        log_three_rows(log)
    assert [row["train/loss"] for row in received.rows[:3]] == [1.0, 0.5, 0.25]
    assert [row["trainer/global_step"] for row in received.rows] == [0, 10, 20, 20]
    assert any(name.startswith("media/images/samples") for name in received.files)
    first = received.upserts[0]
    assert (first["name"], first["project"], first["groupName"], first["jobType"]) == ("r", "p", "g", "train")
    assert first["tags"] == ["t"]
    assert '"lr"' in received.upserts[-1]["config"]
    for private in (socket.gethostname(), str(tmp_path)):
        assert private.encode() not in received.bodies
    assert "going on offline" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
@pytest.mark.slow
def test_a_server_that_does_not_answer_delays_the_start_and_stops_nothing(tmp_path, monkeypatch, capfd, kind):
    """With the timeouts as shipped."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if kind == "is silent" else 9
        silent.settimeout(0.1)
        accepted, stop = [], threading.Event()
        thread = threading.Thread(target=_accept, args=(silent, accepted, stop))
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        start = time.monotonic()
        log = logger(tmp_path, mode="online")
        log.log_metrics({"x": 1.0}, step=0)
        waited = time.monotonic() - start
        log.finalize("success")
        stop.set()
        thread.join()
        for connection in accepted:
            connection.close()
    assert waited < 25
    assert "wandb: going on offline, the server did not take the run" in capfd.readouterr().err
    (segment,) = (path for path in (tmp_path / "wandb").glob("*run-*-r") if not path.is_symlink())
    assert segment.name.startswith("offline-run-")
    assert [row["x"] for row in history(segment)] == [1.0]


def test_a_server_that_cannot_be_reached_is_not_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    start = time.monotonic()
    assert logger(tmp_path).mode == "offline"
    assert time.monotonic() - start < 3
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "short"])
def test_a_missing_or_mistyped_key_stops_nothing(tmp_path, monkeypatch, capfd, key):
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    log = logger(tmp_path, mode="online")
    log.log_metrics({"x": 1.0}, step=0)
    log.finalize("success")
    assert "wandb: going on offline" in capfd.readouterr().err
    (segment,) = (tmp_path / "wandb").glob("offline-run-*-r")
    assert [row["x"] for row in history(segment)] == [1.0]


def test_a_server_that_dies_does_not_hold_the_end(tmp_path, monkeypatch, capfd):
    with wandb_server() as (address, _):
        monkeypatch.setenv("WANDB_BASE_URL", address)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        log = logger(tmp_path, finish_timeout=1.0)
        log.log_metrics({"x": 0.0}, step=0)
    log.log_metrics({"x": 1.0}, step=1)
    start = time.monotonic()
    log.finalize("success")
    assert time.monotonic() - start < 10
    (segment,) = (tmp_path / "wandb").glob("run-*-r")
    assert [row["x"] for row in history(segment)] == [0.0, 1.0]
    assert "nothing is lost" in capfd.readouterr().err


def _accept(server, connections, stop):
    while not stop.is_set():
        with suppress(TimeoutError):
            connections.append(server.accept()[0])
