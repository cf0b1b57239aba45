import socket

import pytest
import wandb

from trilemma.errors import UserError
from trilemma.loggers.wandb import WandbLogger
from trilemma.loggers.wandb_mode import why_offline
from wandb_server import KEY, nowhere, wandb_server  # noqa: F401

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture
def server():
    with wandb_server() as (address, _):
        yield address


def closed_server():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def mode(tmp_path, **options):
    wandb.teardown()  # it reads the environment once
    return WandbLogger(project="p", run_id="r", group="g", save_dir=str(tmp_path), **options).mode


def test_auto_is_offline_without_a_login(server):
    assert "wandb login" in why_offline(server)


def test_auto_is_online_with_a_login_and_a_server(tmp_path, monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    assert mode(tmp_path) == "online"
    monkeypatch.setenv("WANDB_API_KEY", "mistyped")
    assert mode(tmp_path) == "offline"


def test_auto_is_offline_without_a_server(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert "cannot be reached" in why_offline(closed_server())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "cannot be reached" in why_offline(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("http_proxy", server)
    assert why_offline("http://wandb.invalid") is None
    monkeypatch.setenv("http_proxy", closed_server())
    assert "cannot be reached" in why_offline("http://wandb.invalid")


def test_a_login_in_the_netrc_file_is_one_for_its_server_alone(tmp_path, server):
    (tmp_path / "netrc").write_text(f"machine {server.removeprefix('http://')} login user password {KEY}\n")
    assert why_offline(server) is None
    assert "wandb login" in why_offline("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("online", "online"), ("run", "online")],
)
def test_auto_does_what_the_environment_says(tmp_path, monkeypatch, value, expected):
    monkeypatch.setenv("WANDB_MODE", value)
    assert mode(tmp_path) == expected


def test_what_is_asked_for_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mode(tmp_path, mode="offline") == "offline"


def test_a_mode_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(UserError, match=r"WANDB_.*mode Input should be 'online', 'offline'.*'of'"):
        mode(tmp_path)
