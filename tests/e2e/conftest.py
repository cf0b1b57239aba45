"""Entry points, run in this process: quick, and their exit status and error line can be looked at."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from command import run
from trilemma.distributed import signals
from trilemma.distributed.job import new_run_id, this_job

ROOT = Path(__file__).parents[2]


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command("train", "experiment=...") -> Result; outputs go to a temporary folder."""

    def call(script, *arguments, output_dir=tmp_path / "outputs"):
        path = ROOT / f"{script}.py"
        GlobalHydra.instance().clear()
        paths = [f"paths.output_dir={output_dir}"] if script == "train" else []
        monkeypatch.setattr(sys, "argv", [str(path), *arguments, *paths])
        status = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        finally:  # the next command is another process, as far as it knows
            signals.stop_listening()
            new_run_id.cache_clear()
            this_job.cache_clear()
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

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
