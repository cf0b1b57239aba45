"""A sweep whose points are SLURM jobs of several processes: `hydra/launcher=submitit_slurm`."""

import json
import subprocess
import sys

import pytest
from cluster import ROOT

from trilemma.callbacks.checkpoint import step_checkpoints

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytest.importorskip("mlxtend")
SWEEP = [
    "-m",
    "hydra/launcher=submitit_slurm",
    "experiment=demo/vqvae",
    "debug=fast",
    "trainer.max_steps=120",
    "callbacks.checkpoint.every_n_batches=10",
    "trainer=ddp",
    "trainer.devices=2",
    "optimizer.lr=1e-3,1e30",
]


def test_a_point_that_is_stopped_goes_on_and_one_that_fails_is_named(cluster, runs):
    arguments = [*SWEEP, f"paths.output_dir={runs.outputs}"]
    environment = {**cluster.environment, **runs.environment}
    sweep = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        line = sweep.stdout.readline()
        assert ": 2 points; what they print: " in line, line
        job = line.split()[2].rstrip(":")
        folder = runs.outputs / "demo/vqvae"

        def newest():
            found = [path for run in folder.glob("sweep-lr0.001-*") for path in step_checkpoints(run / "checkpoints")]
            return found[0] if found else None

        cluster.until(newest, f"{job}_0")
        cluster.call("scancel", "--signal=USR2", f"{job}_0")  # what SLURM sends some time before the end
        out, error = sweep.communicate(timeout=400)
    finally:
        sweep.kill()
    assert sweep.returncode == 1, out + error
    failed = [line for line in error.splitlines() if line.startswith("error: 1 of 2 points failed: sweep-lr1e+30-")]
    assert len(failed) == 1
    assert "is not finite" in error
    [run] = folder.glob("sweep-lr0.001-*")
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["num_batches"]) == ("finished", 120)
    logs = folder / ".submitit" / f"{job}_0"
    first = (logs / f"{job}_0_0_log.out").read_text()
    assert first.count("Resuming from") == 1
    assert f"SLURM job {job}_0 is requeued" in first
    assert (logs / f"{job}_0_1_log.out").read_text().count("Starting with") == 2  # the second process, both times
