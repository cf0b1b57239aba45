"""Points in two processes of this machine, as a user runs them."""

import json

import pytest

from command import run

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytest.importorskip("mlxtend")


def test_one_of_two_fails_and_the_other_is_finished(tmp_path):
    arguments = ["-m", "hydra/launcher=joblib", "experiment=demo/vqvae", "debug=fast", "optimizer.lr=1e-3,1e30"]
    done = run("train", *arguments, f"paths.output_dir={tmp_path}", status=1)
    assert "warning" not in done.stderr.lower()
    [good] = (tmp_path / "demo/vqvae").glob("sweep-lr0.001-*")
    [bad] = (tmp_path / "demo/vqvae").glob("sweep-lr1e+30-*")
    record = json.loads((good / "run.json").read_text())
    assert record["status"] == "finished"
    assert f"{record['metrics']['val/psnr']:.6g}  {good.name}" in done.stdout.splitlines()
    assert json.loads((bad / "run.json").read_text())["status"] == "stopped"
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: 1 of 2 points failed: {bad.name}.")
