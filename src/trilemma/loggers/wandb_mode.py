"""Whether a wandb run goes to a server or to the disk."""

from __future__ import annotations

import netrc
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from trilemma.errors import UserError

Mode = Literal["auto", "online", "offline", "disabled"]

_CONNECT_SECONDS = 2.0
# wandb's public server answers under both names, and a login may be noted under either.
_PUBLIC_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
_FROM_ENVIRONMENT: dict[str, Literal["online", "offline", "disabled"]] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


@dataclass(frozen=True)
class Decision:
    """What is done, and why where that is not what everybody hopes for.

    Attributes:
        mode: "online", "offline" or "disabled".
        reason: Why offline; None otherwise.
    """

    mode: Literal["online", "offline", "disabled"]
    reason: str | None = None


def decide(mode: Mode, *, server: Callable[[], str]) -> Decision:
    """Settle the mode before anything is opened.

    A mode that is asked for is taken. `auto` does what WANDB_MODE in the environment says; without it a run is online if
    there is a login and the server, or the proxy before it, accepts a connection within 2 s, and offline otherwise.

    Args:
        mode: What the user asks for.
        server: Gives the address of the wandb server, where it matters.

    Raises:
        UserError: If WANDB_MODE is no mode.
    """
    asked = os.environ.get("WANDB_MODE")
    if asked and asked not in _FROM_ENVIRONMENT:  # wandb itself would not start
        raise UserError(f"WANDB_MODE={asked}: choose one of online, offline, disabled, or unset it")
    if mode != "auto":
        return Decision(mode, "mode=offline" if mode == "offline" else None)
    if asked:
        found = _FROM_ENVIRONMENT[asked]
        return Decision(found, f"WANDB_MODE={asked}" if found == "offline" else None)
    address = server()
    reason = _no_login(address) or _no_connection(address)
    return Decision("online") if reason is None else Decision("offline", reason)


def has_login(server: str) -> bool:
    """Whether there is a key or token for `server`, in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    place = urlsplit(server).netloc
    return any(_in_netrc(name) for name in (_PUBLIC_HOSTS if place in _PUBLIC_HOSTS else (place,)))


def _no_login(server: str) -> str | None:
    return None if has_login(server) else "no API key: wandb login, or WANDB_API_KEY"


def _no_connection(server: str) -> str | None:
    address = urlsplit(server)
    proxy = getproxies().get(address.scheme)
    if proxy and not proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return f"{host}:{port} cannot be reached"
    return None


def _in_netrc(host: str) -> bool:
    candidates = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for path in (Path(candidate).expanduser() for candidate in candidates):
        try:
            if path.is_file() and netrc.netrc(str(path)).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError):  # wandb will not be able to read it either
            continue
    return False
