"""What two real runs log: a VQ-VAE and the VQ-Diffusion on its codes, for milliseconds each, wandb offline."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
FAST = [
    "debug=fast", "run.id=tiny", "logger=wandb", "callbacks.modes.every_n_batches=2", "callbacks.modes.num_images=4",
    "callbacks.samples.every_n_batches=2", "callbacks.samples.num_rows=1", "callbacks.samples.num_columns=2",
]  # fmt: skip


def call(script, *arguments):
    """An entry point in this process."""
    GlobalHydra.instance().clear()
    before = sys.argv
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv = before


def inspect(folder, *options):
    """Records of an offline run, by wandb's own reader."""
    wandb = str(Path(sys.executable).parent / "wandb")
    line = [wandb, "leet", "inspect", *options, "--json", str(folder)]
    printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout
    return [json.loads(record) for record in printed.splitlines()]


@pytest.fixture(scope="session")
def logged(tmp_path_factory):
    """Keys that the two runs log together: metrics, and names of pictures."""
    pytest.importorskip("mlxtend")
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.delenv("WANDB_RUN_ID", raising=False)
        patch.chdir(ROOT)
        paths = [f"paths.output_dir={out}"]
        call("train.py", "experiment=demo/vqvae", *FAST, *paths)
        codec = out / "demo/vqvae/tiny/checkpoints/last.ckpt"
        small = ["network.dim=32", "network.depth=1", "sampler.num_steps=2", f"codec.checkpoint={codec}"]
        call("train.py", "experiment=demo/vq_diffusion", *FAST, *small, *paths)
    keys = set()
    for run in sorted(out.glob("demo/*/tiny/wandb/offline-run-*")):
        for record in inspect(run):
            keys |= history_keys(record)
    return keys


def history_keys(record):
    """Keys of one row of history; a picture is flattened to `name._type`, `name.filenames`, ..."""
    return {str(key).split(".")[0] for key in record.get("history", {}).get("item", {})}
