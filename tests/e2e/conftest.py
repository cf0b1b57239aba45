"""Entry points, run in this process: quick, and their exit status and error line can be looked at."""

import pytest

from command import run, run_here


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
    folder = tmp_path_factory.mktemp("outputs")
    arguments = [
        "experiment=demo/vq_diffusion",
        "debug=fast",
        "network.dim=32",
        "network.depth=1",
        "run.id=tiny",
        "codec.overrides=['debug=fast']",
        f"paths.output_dir={folder}",
    ]
    first = run("train", *arguments)
    assert "First stage: no finished demo/vqvae" in first.stdout
    assert "warning" not in first.stderr.lower()
    again = run("train", *arguments)
    assert "Finished already" in again.stdout
    other = run(
        "train",
        *arguments,
        "run.id=other",
        "seed=1",
        "init_from=" + str(folder / "demo/vq_diffusion/tiny/checkpoints/last.ckpt"),
    )
    assert "First stage" not in other.stdout  # found by the content of recipe and data
    return folder


@pytest.fixture(scope="session")
def prior(runs):
    return runs / "demo/vq_diffusion/tiny/checkpoints/last.ckpt"
