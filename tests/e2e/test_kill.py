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

ROOT = Path(__file__).parents[2]
NUM_KILLS = 20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "20000"}


def start(arguments, output_dir, run_id, log):
    command = [sys.executable, "train.py", *arguments, f"paths.output_dir={output_dir}", f"run.id={run_id}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def newest(output_dir, experiment, run_id):
    return sorted((output_dir / experiment / run_id / "checkpoints").glob("step-*.ckpt"))[-1]


def assert_equal(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_equal(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}/{i}")
    else:
        assert a == b, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "overrides"),
    [
        ("demo/vqvae", ["trainer.max_steps=300", "data.batch_size=16"]),
        (
            "demo/vq_diffusion",
            [
                "trainer.max_steps=200",
                "data.batch_size=8",
                "network.dim=32",
                "codec.overrides=['trainer.max_steps=20']",
            ],
        ),
    ],
)
def test_killed_twenty_times(experiment, overrides, tmp_path):
    pytest.importorskip("mlxtend")
    arguments = [
        f"experiment={experiment}",
        "callbacks.checkpoint.every_n_batches=5",
        "trainer.val_check_interval=50",
        *overrides,
    ]
    with (tmp_path / "log.txt").open("a") as log:
        began = time.monotonic()
        assert start(arguments, tmp_path, "left_alone", log).wait() == 0
        duration = time.monotonic() - began
        draw, kills, resumed, attempts = random.Random(0), 0, 0, 0
        while kills < NUM_KILLS:
            attempts += 1
            assert attempts < 3 * NUM_KILLS, "the run finished before it could be killed often enough"
            folder = tmp_path / experiment / "killed"
            before = sorted(folder.glob("checkpoints/step-*.ckpt"))
            process = start(arguments, tmp_path, "killed", log)
            try:
                # start-up takes most of a short run: the moment is drawn over start-up and a little training
                process.wait(timeout=draw.uniform(0.3, 1.0) * min(duration, 12))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                assert process.wait() == -signal.SIGKILL
                kills += 1
                resumed += bool(before)
                continue
            assert process.returncode == 0
            break
        assert start(arguments, tmp_path, "killed", log).wait() == 0
    print(f"{experiment}: {kills} kills, {resumed} of them of a run that had resumed")
    assert kills == NUM_KILLS
    a, b = (torch.load(newest(tmp_path, experiment, name), weights_only=True) for name in ("left_alone", "killed"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(a[key], b[key], key)
    averages = [next(v for k, v in c["callbacks"].items() if k.startswith("EMA")) for c in (a, b)]
    assert_equal(*averages, "ema")
