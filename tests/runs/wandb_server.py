"""A wandb server of a few lines: it takes what a run sends and keeps it."""

import gzip
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "x" * 40


class Received:
    """What the server was told: `rows` of history and `files` by name, and the names of the `queries`."""

    def __init__(self):
        self.rows = []
        self.files = {}
        self.queries = []
        self.upserts = []
        self.bodies = b""


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
            content = json.loads(self._body() or b"{}")
            if not self.path.endswith("/graphql"):  # the file stream
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


@contextmanager
def wandb_server():
    """Yield (address, Received) of a server on the loopback."""
    received = Received()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(received, lambda: address))
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield address, received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
