"""Requeue a preempted SLURM job."""

from __future__ import annotations

import os
import subprocess

from trilemma.distributed.job import slurm_id

BY_WHOM = "TRILEMMA_REQUEUE"  # "script": the script that started this process requeues the job on exit status 75
_SECONDS = 60.0
_NOT_RUNNING = ("PENDING", "CANCELLED", "PREEMPTED", "REQUEUED", "SPECIAL_EXIT")


def requeue() -> str | None:
    """Ask SLURM to requeue this job, which ends it at once. Called by one process of a job, when everything is written.

    A job that is being cancelled, or that SLURM requeues by itself, is left alone.

    Returns:
        A message for the user; None outside a SLURM job, or where something else requeues it.
    """
    job = slurm_id()
    if job is None or os.environ.get(BY_WHOM) == "script":
        return None
    try:
        shown = _scontrol("show", "job", "--oneliner", job)
    except FileNotFoundError:  # in a container without SLURM's commands
        return f"SLURM job {job} is not requeued (no scontrol here): submit it again"
    except subprocess.TimeoutExpired:
        return f"SLURM job {job} is not requeued (SLURM does not answer): submit it again"
    state = dict(part.partition("=")[::2] for part in shown.stdout.split())
    # A job whose end has begun shows as COMPLETING, whatever ended it.
    ended_otherwise = state.get("JobState") == "COMPLETING" and state.get("Reason") != "TimeLimit"
    if state.get("JobState") in _NOT_RUNNING or ended_otherwise:
        return None
    print(f"SLURM job {job} is requeued", flush=True)  # printed before, because requeueing kills this process
    asked = _scontrol("requeue", job)
    if asked.returncode:
        reason = " ".join((asked.stderr or asked.stdout).split())
        return f"SLURM did not requeue job {job} ({reason}): submit it again"
    return None


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=_SECONDS, check=False)
