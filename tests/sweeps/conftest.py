"""Sweeps in this process, of trainings that take no time."""

import runpy
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import trilemma.cli.train
from trilemma.distributed import signals

ROOT = Path(__file__).parents[2]


class Result:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


class Sweep:
    """Runs `train.py -m ...` with another training.

    Attributes:
        folder: Of the sweep.
        runs: The points that were run: learning rate and id, in their order.
    """

    def __init__(self, folder, monkeypatch, capsys):
        self.folder, self.runs = folder / "outputs/demo/vqvae", []
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments, train=lambda rate, cfg: -abs(rate - 0.01)):
        def fake(cfg):
            self.runs.append((cfg.optimizer.lr, Path(cfg.paths.run_dir).name))
            return train(cfg.optimizer.lr, cfg)

        self._monkeypatch.setattr(trilemma.cli.train, "train", fake)
        path = ROOT / "train.py"
        output = f"paths.output_dir={self.folder.parents[1]}"
        self._monkeypatch.setattr(sys, "argv", [str(path), "-m", "experiment=demo/vqvae", *arguments, output])
        GlobalHydra.instance().clear()
        status = 0
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        finally:
            signals.stop_listening()
            HydraConfig.instance().cfg = None
        return Result(status, *self._capsys.readouterr())


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    return Sweep(tmp_path, monkeypatch, capsys)
