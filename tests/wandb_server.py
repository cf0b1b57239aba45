"""A wandb server of a few lines, which takes what a run sends and keeps it; and what reads a run on the disk."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEY = "x" * 40


class Received:
    """What the server was told: `rows` of history, `files` by name, the `upserts` of runs, and every byte of it."""

    def __init__(self):
        self.rows = []
        self.files = {}
        self.queries = []
        self.upserts = []
        self.bodies = b""
        self.others = []


def _handler(received, address):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def _body(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.bodies += body
            return body

        def _answer(self, content):
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self._answer({})

        def do_PUT(self):
            received.files[self.path.removeprefix("/put/")] = self._body()
            self._answer({})

        def do_POST(self):
            body = self._body()
            if not self.path.endswith(("/graphql", "/file_stream")):
                received.others.append(self.path)
                self._answer({})
                return
            content = json.loads(body)
            if self.path.endswith("/file_stream"):
                for line in content.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
                    received.rows.append(json.loads(line))
                self._answer({"exitcode": None, "limits": {}})
                return
            name = re.search(r"(?:query|mutation)\s+(\w+)", content["query"])
            received.queries.append(name[1] if name else "")
            self._answer({"data": self._data(received.queries[-1], content.get("variables", {}))})

        def _data(self, query, variables):
            project = {"id": "P", "name": "p", "entity": {"id": "E", "name": "e"}}
            if query == "Viewer":
                return {"viewer": {"id": "V", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
            if query == "RunResumeStatus":
                return {"model": {"id": "M", "name": "p", "bucket": None}}
            if query == "UpsertBucket":
                received.upserts.append(variables)
                bucket = {"id": "B", "name": variables.get("name"), "displayName": variables.get("displayName")}
                bucket |= {"project": project, "historyLineCount": 0, "config": "{}", "sweepName": None}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            if query == "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{address()}/put/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
            return {
                "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
                "project": None,
            }

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args):
        super().__init__(*args)
        self.connections = []

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def server_close(self):
        super().server_close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), (ConnectionError, ValueError)):  # wandb hangs up as it likes, and so do we
            super().handle_error(request, client_address)


@contextmanager
def wandb_server():
    """Yield (address, Received) of a server on the loopback."""
    received = Received()
    server = _Server(("127.0.0.1", 0), _handler(received, lambda: address))
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address, received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """Neither a login nor a server; what wandb's process-wide settings become is undone."""
    import wandb

    saved = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    for name in saved:
        del os.environ[name]
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(saved)


def records(segment):
    """Every record of a segment, by wandb's own reader."""
    return [json.loads(line) for line in _leet("--json", str(segment)).splitlines()]


def summary(segment):
    """State, config and summary of a segment, by wandb's own reader."""
    return json.loads(_leet("--summary", "--json", str(segment)))


def history(segment):
    """Rows of a segment."""
    return [record["history"]["item"] for record in records(segment) if record["type"] == "history"]


def _leet(*arguments):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
