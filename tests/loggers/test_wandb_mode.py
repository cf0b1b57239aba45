import socket

import pytest

from trilemma.errors import UserError
from trilemma.loggers.wandb_mode import Decision, decide, has_login
from wandb_server import KEY, nowhere  # noqa: F401

pytestmark = pytest.mark.usefixtures("nowhere")


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def closed_server():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_auto_is_offline_without_a_login(server):
    assert decide("auto", server=lambda: server).mode == "offline"
    assert "wandb login" in decide("auto", server=lambda: server).reason


def test_auto_is_online_with_a_login_and_a_server(monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert decide("auto", server=lambda: server) == Decision("online")


def test_auto_is_offline_without_a_server(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    decision = decide("auto", server=closed_server)
    assert decision.mode == "offline"
    assert "cannot be reached" in decision.reason


def test_behind_a_proxy_it_is_the_proxy_that_must_answer(monkeypatch, server):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("https_proxy", server)
    assert decide("auto", server=lambda: "https://wandb.invalid").mode == "online"
    monkeypatch.setenv("https_proxy", closed_server())
    assert decide("auto", server=lambda: "https://wandb.invalid").mode == "offline"


def test_a_login_in_the_netrc_file_is_one_for_its_server_alone(tmp_path, server):
    place = server.removeprefix("http://")
    (tmp_path / "netrc").write_text(f"machine {place} login user password {KEY}\n")
    assert has_login(server)
    assert not has_login("http://127.0.0.1:9")
    assert not has_login("https://api.wandb.ai")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert has_login("https://api.forge.coreweave.com")


@pytest.mark.parametrize(("value", "mode"), [("offline", "offline"), ("disabled", "disabled"), ("online", "online")])
def test_auto_does_what_the_environment_says(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    assert decide("auto", server=lambda: "http://127.0.0.1:9").mode == mode


def test_what_is_asked_for_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert decide("offline", server=lambda: "http://127.0.0.1:9").mode == "offline"


def test_a_mode_that_is_none(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(UserError, match="WANDB_MODE=of: choose one of online, offline, disabled"):
        decide("auto", server=lambda: "http://127.0.0.1:9")
