"""Every point in a SLURM job of its own: Hydra's submitit launcher, which says what it submits and outlives a job that is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn

from trilemma.sweeps.points import PointResult, lost

_SITE_GPUS = "SBATCH_GPUS_PER_NODE"  # of slurm/sites; one process uses one GPU
_OF_EXECUTOR = ("submitit_folder", "max_num_timeout")
_OF_ALL_QUEUES = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "mem_gb",
    "nodes",
    "name",
    "stderr_to_stdout",
)

with suppress(ImportError):
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as _SlurmLauncher

    class SlurmLauncher(_SlurmLauncher):  # type: ignore[misc, unused-ignore]
        """Submits a job array and waits for all of its elements."""

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Run points; one whose job ends without a result has failed."""
            import submitit

            assert self.config is not None
            folder = self.params["submitit_folder"]
            if _SITE_GPUS in os.environ:  # which sbatch takes instead of what is asked for here
                os.environ[_SITE_GPUS] = str(self.params["gpus_per_node"] or self.params["tasks_per_node"])
            executor = submitit.AutoExecutor(
                folder=folder, cluster="slurm", slurm_max_num_timeout=self.params["max_num_timeout"]
            )
            executor.update_parameters(
                **{
                    name if name in _OF_ALL_QUEUES else f"slurm_{name}": value
                    for name, value in self.params.items()
                    if name not in _OF_EXECUTOR
                },
                slurm_srun_args=["--kill-on-bad-exit=1"],  # no process waits for one that has failed
            )
            Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
            points = [
                (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
                for number, overrides in enumerate(job_overrides, initial_job_idx)
            ]
            jobs = executor.map_array(self, *zip(*points, strict=True))
            first = jobs[0].job_id.partition("_")[0]
            print(f"SLURM job {first}: {len(jobs)} points; what they print: {jobs[0].paths.folder.parent}", flush=True)
            returned = [_result(job, overrides) for job, overrides in zip(jobs, job_overrides, strict=True)]
            for outcome in (result.return_value for result in returned):
                if isinstance(outcome, PointResult) and outcome.status:
                    print(f"error: {outcome.point}: {outcome.line}", file=sys.stderr, flush=True)
            return returned


def _result(job: Any, overrides: Sequence[str]) -> JobReturn:
    try:
        result: JobReturn = job.task(0).result()  # of several processes, the first speaks for all
    except Exception as error:  # submitit's own, of which there are several
        return lost(overrides, error)
    return result
