"""A tiny VQ-Diffusion, submitted by the unmodified templates."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import torch
from cluster import ROOT, Cluster

from tiny_run import assert_equal
from trilemma.callbacks.checkpoint import step_checkpoints

PRIOR = (
    "experiment=mnist/vq_diffusion",
    "data=mnist_5k",
    "data.batch_size=16",
    "data.max_val_images=64",
    "codec.overrides=[]",
    "network.dim=32",
    "network.depth=1",
    "network.num_heads=2",
    "callbacks.samples=null",
    "callbacks.modes=null",
    "callbacks.forward_strip=null",
    "callbacks.reverse_strip=null",
    "callbacks.noise_then_denoise=null",
    "trainer.val_check_interval=50",
    "callbacks.checkpoint.every_n_batches=25",
)
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


class Runs:
    """Submits, and looks at what the runs left behind.

    Args:
        cluster: Where.
        folder: For outputs and logs.
        codec: Checkpoint of the first stage.
    """

    def __init__(self, cluster: Cluster, folder: Path, codec: Path | None = None) -> None:
        self.cluster = cluster
        self.folder = folder
        self.codec = codec
        self.outputs = folder / "outputs"
        self.environment = {
            "TRILEMMA_SITE": "local",
            "TRILEMMA_GRACE": "10",
            "TRILEMMA_OUTPUT_DIR": str(self.outputs),
            "GOMP_SPINCOUNT": "20000",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def sbatch(self, *arguments: str, **environment: str) -> str:
        """Submit as a user does, from the repository's root after reading the site; returns the job's number."""
        environment = {**self.environment, **environment}
        line = '. slurm/sites/local.env && exec sbatch --parsable "$@"'
        logs = f"--output={self.folder}/%x-%j.out"
        out = self.cluster.call(
            "bash", "-c", line, "sbatch", logs, "--signal=USR2@15", *arguments, environment=environment
        )
        return out.split()[-1]

    def train(self, *overrides: str, options: tuple[str, ...] = (), **environment: str) -> str:
        """Submit `train.sbatch`."""
        return self.sbatch(*options, "slurm/train.sbatch", *overrides, **environment)

    def prior(
        self, run_id: str, max_steps: int, *more: str, options: tuple[str, ...] = TWO_NODES, **environment: str
    ) -> str:
        """Submit a training of the tiny prior."""
        return self.train(*self.overrides(max_steps, *more), f"run.id={run_id}", options=options, **environment)

    def overrides(self, max_steps: int, *more: str) -> list[str]:
        """What the tiny prior is told."""
        return [*PRIOR, f"trainer.max_steps={max_steps}", f"codec.checkpoint={self.codec}", *more]

    def run_dir(self, run_id: str) -> Path:
        """Of the tiny prior."""
        return self.outputs / "mnist/vq_diffusion" / run_id

    def step(self, run_id: str) -> int:
        """Batches of the newest checkpoint; 0 without one."""
        found = step_checkpoints(self.run_dir(run_id) / "checkpoints")
        return int(found[0].stem.removeprefix("step-")) if found else 0

    def record(self, run_id: str) -> dict[str, object]:
        """The run's own record."""
        record: dict[str, object] = json.loads((self.run_dir(run_id) / "run.json").read_text())
        return record

    def resumed_from(self, job: str) -> list[int]:
        """The batches at which a job's starts took the run up again, in order."""
        return [int(step) for step in re.findall(r"Resuming from \S*step-(\d+)\.ckpt", self.cluster.log(job))]

    def interrupt_when(self, run_id: str, step: int, job: str) -> None:
        """Wait until a checkpoint of at least this batch stands."""
        self.cluster.until(lambda: self.step(run_id) >= step, job)


def state_of(run_dir: Path) -> dict[str, object]:
    """All that a finished run has learnt."""
    path = step_checkpoints(run_dir / "checkpoints")[0]
    checkpoint = torch.load(path, weights_only=True)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    return {name: checkpoint[name] for name in names} | {"ema": checkpoint["callbacks"]["EMA"]}


def assert_same_end(a: Path, b: Path) -> None:
    """Two finished runs are equal bit for bit: weights, averages, optimiser."""
    assert_equal(state_of(a), state_of(b))


def digest(state: dict[str, torch.Tensor]) -> str:
    """A hash of all weights."""
    text = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        text.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return text.hexdigest()


SPY = ROOT / "tests/slurm/spy.py"
