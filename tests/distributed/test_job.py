"""What the first process decides reaches the others, however they were started."""

import json
import os
import subprocess
import sys

import pytest

from trilemma.distributed import job
from trilemma.distributed.job import Job, this_job
from trilemma.errors import UserError

PROGRAM = """
import json
import sys
import time
from pathlib import Path
from trilemma.errors import UserError
from trilemma.distributed.job import this_job

job = this_job()
first = job.broadcast("first", lambda: {"rank": job.rank})
order = Path(sys.argv[1], "order.txt")

def sign():
    time.sleep(0.2)
    with order.open("a") as file:
        file.write(str(job.rank))
    return job.rank

assert job.rank_zero_first("own", sign) == job.rank
job.join()
import torch, torch.distributed as dist
total = torch.tensor([job.rank + 1])
dist.all_reduce(total)
job.leave()
Path(sys.argv[1], f"{job.rank}.json").write_text(json.dumps({"first": first, "total": int(total)}))

def refuse():
    raise UserError("no")

try:
    job.broadcast("second", refuse)
except UserError:
    raise SystemExit(2)
"""


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC", "TRILEMMA_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    this_job.cache_clear()
    yield
    this_job.cache_clear()


def test_alone():
    job = this_job()
    assert (job.rank, job.world_size, job.slurm_id) == (0, 1, None)
    assert job.broadcast("question", lambda: [1, 2]) == [1, 2]


def test_processes_that_lightning_starts_inherit_what_was_decided(monkeypatch):
    monkeypatch.setenv("TRILEMMA_DECISIONS", "{}")
    assert this_job().broadcast("question", lambda: {"path": "a"}) == {"path": "a"}
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    this_job.cache_clear()
    assert this_job().rank == 1
    assert this_job().broadcast("question", pytest.fail) == {"path": "a"}


def test_two_started_by_torchrun(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(program),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {"first": {"rank": 0}, "total": 3}
    assert done.returncode == 1  # torchrun's own
    assert (tmp_path / "order.txt").read_text() == "01"
    assert "exitcode  : 2" in done.stderr
    assert "exitcode  : 1" not in done.stderr


def test_several_tasks_without_srun(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(UserError, match="put srun before python"):
        this_job()


def test_array_elements_have_ids_of_their_own(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "21")
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    job = this_job()
    assert isinstance(job, Job)
    assert (job.slurm_id, job.restarts, job.world_size) == ("17_3", 2, 1)


class Silent:
    """A store to which rank 0 never answers."""

    def check(self, keys):
        return False


def test_who_waits_for_the_first_hears_a_signal(monkeypatch):
    """Rank 0 may train a first stage for hours: the others poll, for a blocking wait would keep signals from them."""
    monkeypatch.setattr(job, "_FAREWELL", 0.0)
    monkeypatch.setattr(job.signals, "asked", lambda: 75)
    with pytest.raises(SystemExit) as end:
        Job(rank=1, world_size=2, store=Silent()).broadcast("question", pytest.fail)
    assert end.value.code == 75
