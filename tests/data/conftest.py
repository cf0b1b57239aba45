"""Small data sets made on the spot."""

from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from trilemma.data.base import ImageData, Split


class ToyData(ImageData):
    """Random images whose first pixel is their number."""

    name = "toy"

    def __init__(self, *, num_train=10, num_val=7, captions=False, **options):
        super().__init__(**{"batch_size": 4} | options)
        self.sizes = {"train": num_train, "val": num_val, "test": 5}
        self.captions = captions
        self.num_reads = 0

    def read(self):
        self.num_reads += 1
        splits = {}
        for name, size in self.sizes.items():
            images = torch.randint(
                256, (size, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
            )
            images[:, 0, 0, 0] = torch.arange(size)
            splits[name] = Split(
                images=images,
                labels=torch.arange(size) % 2,
                captions=[f"{name} {i}" for i in range(size)] if self.captions else None,
                index=torch.arange(size) + 100,
            )
        return splits, ["even", "odd"]


@pytest.fixture
def toy():
    return ToyData


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(tmp_path_factory):
    """A folder served over http: (folder, url)."""
    folder = tmp_path_factory.mktemp("mirror")
    server = HTTPServer(("127.0.0.1", 0), lambda *args: _QuietHandler(*args, directory=str(folder)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def write_idx(path: Path, values: np.ndarray) -> bytes:
    """Write an IDX file; returns its content."""
    header = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(content)
    return content


@pytest.fixture
def idx_writer():
    return write_idx
