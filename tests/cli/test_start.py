"""What needs no model is refused before torch is imported, which takes seconds."""

import os
import subprocess
import sys

import pytest
from hydra.errors import ConfigCompositionException

from command import ROOT
from trilemma.cli import main
from trilemma.errors import Stopped


@pytest.fixture
def without_torch(tmp_path):
    """Run an entry point where torch cannot be imported."""
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")])}

    def call(*arguments):
        return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py"], "nothing to train"),
        (["train.py", "experiment=mnist/vqave"], "did you mean mnist/vqvae?"),
        (["train.py", "experiment=mnist/vqvae", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["train.py", "experiment=mnist/vqvae", "+sede=1"], "did you mean seed?"),
        (["train.py", "experiment=mnist/vqvae", "seed=x"], "seed=x"),
        (["sample.py"], "ckpt is missing"),
        (["sample.py", "ckpt=missing.ckpt"], "there is no checkpoint missing.ckpt"),
        (["sample.py", "ckpt=README.md"], "README.md is not a Trilemma checkpoint"),
        (["sample.py", "ckpt=README.md", "weights=emma"], "did you mean ema?"),
        (["sample.py", "ckpt=README.md", "task=denoize"], "did you mean denoise?"),
        (["evaluate.py"], "name what is to be measured"),
        (["evaluate.py", "ckpts=[README.md,missing.ckpt]"], "README.md is not a Trilemma checkpoint"),
    ],
    ids=" ".join,
)
def test_refusals(without_torch, arguments, message):
    done = without_torch(*arguments)
    assert message in done.stderr
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_help(without_torch, script):
    assert without_torch(script, "--help").returncode == 0


def test_a_request_to_stop_that_hydra_wrapped_is_one(capsys):
    """A signal in the midst of composing: Hydra raises an error of its own from whatever ended it."""

    def compose():
        try:
            raise Stopped(75, "stopped by SIGUSR1")
        except Stopped as stop:
            raise ConfigCompositionException from stop

    with pytest.raises(SystemExit) as end:
        main.run(compose)
    assert end.value.code == 75
    assert capsys.readouterr().err == "stopped by SIGUSR1\n"
