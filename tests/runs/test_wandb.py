import socket

import pytest

from trilemma.runs import wandb as ours
from trilemma.runs.wandb import WandbLogger


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def logger(tmp_path, **options):
    return WandbLogger(project="p", run_id="a/b", group="mnist/vqvae", save_dir=str(tmp_path), **options)


def test_offline_without_a_key_and_says_so_in_one_line(tmp_path, capsys):
    init = logger(tmp_path)._wandb_init
    assert (init["mode"], init["id"], init["group"], init["job_type"]) == ("offline", "a-b", "mnist/vqvae", "train")
    assert init["resume"] == "allow"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("wandb: offline (no API key")


def test_online_with_a_key_and_a_server(tmp_path, monkeypatch, server, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert "mode" not in logger(tmp_path)._wandb_init
    assert capsys.readouterr().err == ""
    assert logger(tmp_path, offline=True)._wandb_init["mode"] == "offline"


def test_key_in_netrc(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_BASE_URL", server)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password key\n")
    assert ours._why_offline() is None
    (tmp_path / "netrc").write_text("machine other login user password key\n")
    assert "no API key" in ours._why_offline()


def test_offline_without_network(monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    port = int(server.rsplit(":", 1)[1])
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    assert ours._why_offline() is None
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free}")
    assert "cannot be reached" in ours._why_offline()


@pytest.mark.parametrize(("mode", "reason"), [("offline", "WANDB_MODE=offline"), ("disabled", None), ("online", None)])
def test_the_users_mode_is_respected(monkeypatch, mode, reason):
    monkeypatch.setenv("WANDB_MODE", mode)
    assert ours._why_offline() == reason


def test_writes_below_the_run_directory(tmp_path):
    """A real offline run: begun, logged to, finished, and begun again under the same id."""
    for _ in range(2):
        run = logger(tmp_path)
        run.log_metrics({"train/loss": 1.0}, step=3)
        run.finalize("success")
    segments = list((tmp_path / "wandb").glob("offline-run-*-a-b"))
    assert segments
    assert all(any(segment.glob("run-a-b.wandb")) for segment in segments)
