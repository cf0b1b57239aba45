"""Entry points, run in this process: quick, and their exit status and error line can be looked at."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

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
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call
