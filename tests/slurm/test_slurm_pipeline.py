"""Codec, prior and evaluation as dependent jobs, from one command that also repairs."""

import json
import re

import pytest

from training import PRIOR

CODEC = "experiment=demo/vqvae debug=fast"
EVALUATE = "num_images=20 ledger.max_seconds=0 likelihood.num_images=0 two_stage=false"


@pytest.fixture
def pipeline(runs, cluster):
    """pipeline() -> the jobs of codec, prior and evaluation, submitted by the one command."""
    overrides = " ".join(f'"{word}"' for word in [*PRIOR, "trainer.max_steps=20"])

    def submit():
        options = ("--codec", CODEC, "--prior", overrides, "--evaluate", EVALUATE)
        logs = ("--", f"--output={runs.folder}/%x-%j.out")
        said = cluster.call("slurm/pipeline.sh", "first", *options, *logs, environment=runs.environment)
        return re.findall(r"^(?:codec|prior|evaluate) +job (\d+)", said, re.MULTILINE)

    return submit


def test_a_failed_pipeline_is_repaired_by_the_same_command(pipeline, runs, cluster):
    in_the_way = runs.outputs / "demo"
    runs.outputs.mkdir()
    in_the_way.write_text("a file where the codec's folder should be")
    codec, prior, evaluation = pipeline()
    assert cluster.wait_for(codec, "FAILED")["ExitCode"] == "2:0"
    for job in (prior, evaluation):
        cluster.wait_for(job, "CANCELLED")
        assert cluster.log(job) == ""  # never begun
    assert f"error: cannot write {in_the_way}" in cluster.log(codec)

    in_the_way.unlink()
    codec, prior, evaluation = pipeline()
    assert "(Dependency)" in cluster.call("squeue", "--jobs", prior, "--format=%R")
    cluster.finish(codec)
    began = cluster.finish(prior)["StartTime"]
    assert began >= cluster.job(codec)["EndTime"]
    cluster.finish(evaluation)
    last = runs.outputs / "demo/vqvae/first/checkpoints/last.ckpt"
    config = (runs.run_dir("first") / "config.yaml").read_text()
    assert f"checkpoint: {last}" in config  # of this codec
    (row,) = (runs.run_dir("first") / "evaluation").rglob("*.json")
    assert json.loads(row.read_text())["protocol"]["num_images"] == 20


@pytest.mark.slow
def test_a_finished_pipeline_passes(pipeline, cluster):
    for job in pipeline():
        cluster.finish(job)
    codec, prior, evaluation = pipeline()
    cluster.finish(evaluation)
    assert "Finished already" in cluster.log(codec)
    assert "Finished already" in cluster.log(prior)
