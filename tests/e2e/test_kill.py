"""A named run that is killed at random moments ends as the run that was left alone, bit for bit on CPU."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tiny_run import assert_equal
from trilemma.callbacks.checkpoint import step_checkpoints

ROOT = Path(__file__).parents[2]
NUM_KILLS = 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "20000"}


def start(arguments, output_dir, run_id, log):
    command = [sys.executable, "train.py", *arguments, f"paths.output_dir={output_dir}", f"run.id={run_id}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def wait_for_training(process, record, previous):
    """Wait until the run writes its record anew, which it does just before the first batch; False if it ended first."""
    while process.poll() is None:
        if record.exists() and record.stat().st_mtime_ns != previous:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("demo/vqvae", ["trainer.max_steps=400", "data.batch_size=16"]),
        (
            "demo/vq_diffusion",
            ["trainer.max_steps=400", "data.batch_size=8", "network.dim=32", "codec.overrides=['debug=fast']"],
        ),
        (
            "mnist/iddpm",
            [
                "data=mnist_5k",
                "trainer.max_steps=400",
                "data.batch_size=8",
                "data.max_val_images=8",
                "network.channels=16",
                "process.schedule.num_steps=100",
                "model.objective=bound",
                "model/times=importance",
                "model.times.min_count=1",
                "callbacks.forward_strip=null",
                "callbacks.reverse_strip=null",
                "callbacks.noise_then_denoise=null",
                "callbacks.loss_by_time=null",
                "callbacks.samples=null",
                "callbacks.modes=null",
            ],
        ),
    ],
)
def test_killed_twenty_times(experiment, overrides, tmp_path):
    pytest.importorskip("mlxtend")
    often = ["callbacks.checkpoint.every_n_batches=5", "trainer.val_check_interval=50"]
    arguments = [f"experiment={experiment}", *often, *overrides]
    folder = tmp_path / experiment / "killed"
    record = folder / "run.json"
    with (tmp_path / "log.txt").open("a") as log:
        alone = start(arguments, tmp_path, "left_alone", log)
        wait_for_training(alone, tmp_path / experiment / "left_alone" / "run.json", None)
        began = time.monotonic()
        assert alone.wait() == 0
        training = time.monotonic() - began
        draw, resumed = random.Random(0), 0
        for kill in range(NUM_KILLS):
            resumed += bool(step_checkpoints(folder / "checkpoints"))
            previous = record.stat().st_mtime_ns if record.exists() else None
            process = start(arguments, tmp_path, "killed", log)
            if draw.random() < 0.2:  # while it starts
                time.sleep(draw.uniform(0, 4))
            else:  # while it trains, writes a checkpoint, or validates
                assert wait_for_training(process, record, previous), f"the run ended before kill {kill}"
                time.sleep(draw.uniform(0, 1.2 * training / NUM_KILLS))
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, f"the run ended before kill {kill}"
        assert start(arguments, tmp_path, "killed", log).wait() == 0
    print(f"{experiment}: {NUM_KILLS} kills, {resumed} of them of a run that had a checkpoint to resume from")
    assert resumed > NUM_KILLS // 2
    a, b = (
        torch.load(step_checkpoints(tmp_path / experiment / name / "checkpoints")[0], weights_only=True)
        for name in ("left_alone", "killed")
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(a[key], b[key], key)
    assert_equal(a["callbacks"]["EMA"], b["callbacks"]["EMA"], "ema")
