"""The record of a run, `run.json`: what it is and whether it is finished."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trilemma.atomic import atomic_write_text

NAME = "run.json"


def write_record(
    run_dir: Path,
    *,
    experiment: str,
    recipe: str,
    identity: str,
    data: str,
    status: str,
    checkpoint: Path | None,
    num_batches: int,
    metrics: Mapping[str, float] | None = None,
    slurm_job: str | None = None,
    uid: str | None = None,
) -> None:
    """Write the record atomically.

    Args:
        run_dir: The run's directory.
        experiment: Name of the experiment.
        recipe: Content hash of the recipe.
        identity: The same without the run's length: what a resumed run must agree with.
        data: Fingerprint of the data.
        status: "running", "stopped" or "finished".
        checkpoint: Newest checkpoint.
        num_batches: Batches trained so far.
        metrics: Of the last validation.
        slurm_job: The SLURM job that trains it.
        uid: Drawn when the run began; it tells runs of one name apart.
    """
    record = {
        "experiment": experiment,
        "recipe": recipe,
        "identity": identity,
        "data": data,
        "status": status,
        "checkpoint": None if checkpoint is None else str(checkpoint.resolve().relative_to(run_dir.resolve())),
        "num_batches": num_batches,
        "metrics": dict(metrics or {}),
        "slurm_job": slurm_job,
        "uid": uid,
        "time": time.time(),
    }
    atomic_write_text(run_dir / NAME, json.dumps(record, indent=2) + "\n")


def read_record(run_dir: Path) -> dict[str, Any] | None:
    """Read the record of a run, with its checkpoint as a full path; None where there is none or it is not readable."""
    try:
        record = json.loads((run_dir / NAME).read_text())
    except (OSError, ValueError):
        return None
    if (
        not isinstance(record, dict)
        or not {"recipe", "identity", "data", "status", "checkpoint", "num_batches", "time"} <= record.keys()
    ):
        return None
    if record["checkpoint"] is not None:
        record["checkpoint"] = str(run_dir / record["checkpoint"])
    return record


def finished_runs(output_dir: Path) -> Iterator[dict[str, Any]]:
    """Read the records of all finished runs below the output root."""
    for path in sorted(output_dir.glob(f"**/{NAME}")):
        record = read_record(path.parent)
        if record is not None and record["status"] == "finished" and record["checkpoint"] is not None:
            yield record
