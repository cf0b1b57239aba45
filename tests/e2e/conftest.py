"""Entry points, run in this process: quick, and their exit status and error line can be looked at."""

import importlib.util
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from trilemma.runs import cli

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
        spec = importlib.util.spec_from_file_location(f"{script}_entry_point", path)
        module = importlib.util.module_from_spec(spec)
        # hydra finds conf/ beside the file of the module that defines the task function
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        status = 0
        try:
            cli.run(module.main)
        except SystemExit as stop:
            status = stop.code
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call
