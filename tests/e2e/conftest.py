"""Entry points, run in this process: quick, and their exit status and error line can be looked at."""

import pytest

from command import run_here
from shared import once


@pytest.fixture
def command(tmp_path):
    """command("train", "experiment=...") -> Result; outputs go to a temporary folder."""

    def call(script, *arguments, output_dir=tmp_path / "outputs"):
        paths = [f"paths.output_dir={output_dir}"] if script == "train" else []
        return run_here(script, *arguments, *paths)

    return call


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A prior trained from nothing: its first stage is trained first, in a child process."""
    pytest.importorskip("mlxtend")
    return once(tmp_path_factory, "runs", train_prior)


def train_prior(folder):
    arguments = [
        "experiment=demo/vq_diffusion",
        "debug=fast",
        "network.dim=32",
        "network.depth=1",
        "run.id=tiny",
        "codec.overrides=['debug=fast']",
        f"paths.output_dir={folder}",
    ]
    first = run_here("train", *arguments)
    assert first.status == 0, first.err
    assert "First stage: no finished demo/vqvae" in first.out
    assert "warning" not in first.err.lower()
    again = run_here("train", *arguments)
    assert "Finished already" in again.out
    checkpoint = folder / "demo/vq_diffusion/tiny/checkpoints/last.ckpt"
    other = run_here("train", *arguments, "run.id=other", "seed=1", f"init_from={checkpoint}")
    assert other.status == 0, other.err
    assert "First stage" not in other.out  # found by the content of recipe and data


@pytest.fixture(scope="session")
def prior(runs):
    return runs / "demo/vq_diffusion/tiny/checkpoints/last.ckpt"


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Features of the real images, once for all tests."""
    return once(tmp_path_factory, "cache", lambda folder: None)
