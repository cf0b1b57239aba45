"""Points of a sweep (`-m`): the name of a point, which a rerun keeps, its result, and the sweeps that are refused."""

from __future__ import annotations

import atexit
import hashlib
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from trilemma.distributed import signals
from trilemma.distributed.job import place, status_of
from trilemma.errors import FAILED, REFUSED, Stopped, TrainingError, UserError
from trilemma.sweeps.launchers import is_started_by_another

IN_SLURM = "SlurmLauncher"  # the launcher that starts every point in a SLURM job of its own
_NOT_IN_ID = (
    "run",
    "paths",
    "logger",
    "num_threads",
    "optimized_metric",
)  # change where and how a point runs, not what it is
_MAX_WORDS = 60  # characters


@dataclass(frozen=True)
class PointResult:
    """The result of a point.

    Attributes:
        point: Its name.
        status: As an exit status; 0 if it was finished.
        line: What was wrong, if anything was.
        value: Of the metric that a sweep may optimise; None where the command gives none.
    """

    point: str
    status: int = 0
    line: str = ""
    value: float | None = None

    def __float__(self) -> float:
        """Convert to the value for Hydra's sweepers; NaN for a point that failed."""
        return math.nan if self.status or self.value is None else self.value


def in_sweep() -> bool:
    """Check whether this job is a point of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN


def point_id(overrides: Iterable[str] | None = None) -> str:
    """Name a point after the sweep (`run.id=NAME`, else `sweep`), the varied settings, and a hash of all overrides.

    So the same command finds the same points again, and no two points share a directory.

    Args:
        overrides: As typed, those that are varied first; those of this job where None.
    """
    if overrides is None:
        overrides = list(HydraConfig.get().overrides.task)
    name, kept, words = "sweep", [], []
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "run.id":
            name = value
        if re.split(r"[./@]", key.lstrip("+~"))[0] in _NOT_IN_ID:
            continue
        kept.append(override)
        if key != "experiment":
            words.append(_word(key, value))
    while len("-".join(words)) > _MAX_WORDS:
        words.pop()
    digest = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()[:6]
    return "-".join([name, *words, digest])


def _word(key: str, value: str) -> str:
    leaf = re.split(r"[./@]", key)[-1]
    with suppress(ValueError):
        value = min(value, f"{float(value):.4g}", key=len)  # short, for readers; the hash has all digits
    value = re.sub(r"[^\w.+-]+", "_", value).strip("_")
    return f"{leaf}{value}" if value[:1].isdigit() else f"{leaf}-{value}"


def run_point(run_job: Callable[[DictConfig], Any], cfg: DictConfig) -> PointResult:
    """Run a point. Its errors do not end the sweep, unless the user or a cluster asks to stop.

    Args:
        run_job: What the command does; a number that it returns is the point's value.
        cfg: The point's configuration.

    Raises:
        Stopped: If a signal asked for it.
        KeyboardInterrupt: Likewise.
    """
    point = point_id()
    try:
        value = run_job(cfg)
    except (UserError, TrainingError) as error:
        outcome = PointResult(point, status_of(error), " ".join(str(error).split()))
    except Stopped as stop:
        if not is_started_by_another():
            raise
        return PointResult(
            point, stop.status, stop.line
        )  # signals the sweeping process, which stops when all points have written
    except SystemExit as stop:  # an oracle that failed, or a process whose rank 0 printed the error
        outcome = PointResult(point, status_of(stop) if stop.code else 0, f"ended with status {stop.code}")
    except Exception as error:
        traceback.print_exc()
        outcome = PointResult(point, FAILED, f"{type(error).__name__}: {error}")
    else:
        number = float(value) if isinstance(value, (int, float)) else None
        outcome = PointResult(point, value=number)
    if outcome.status:
        _fail(outcome)
    return outcome


def _fail(outcome: PointResult) -> None:
    """Print the error. With several processes, one exits with its status once its result is handed over: srun then ends the others."""
    if not place().rank:
        print(f"error: {outcome.point}: {outcome.line}", file=sys.stderr, flush=True)
        folder = Path(HydraConfig.get().runtime.output_dir)
        if folder.name == outcome.point:
            with suppress(OSError):  # Hydra created it; a folder with files stays
                folder.rmdir()
    if place().world_size > 1:
        atexit.register(os._exit, outcome.status)


def tasks_per_node(devices: Any) -> int:
    """Count the tasks a node for `trainer.devices`, one a device; `auto` counts as one."""
    if OmegaConf.is_list(devices):
        return len(devices)
    return int(devices) if str(devices).isdigit() else 1


def lost(overrides: Sequence[str], error: Exception) -> JobReturn:
    """Build the result of a point whose process ended without one."""
    point = point_id(overrides)
    line = f"its process is gone ({type(error).__name__}: {str(error).strip().splitlines()[0]})"
    returned = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    returned.return_value = PointResult(point, FAILED, line)
    return returned


def raise_if_stopped() -> None:
    """Raise if a signal asked to stop the sweep.

    Raises:
        Stopped: If it was.
    """
    if status := signals.asked():
        raise Stopped(status, f"stopped by {signals.name()}; the same command goes on with the sweep")


def conclude(outcomes: Sequence[PointResult]) -> None:
    """End a sweep: print which points failed.

    Raises:
        UserError: If every point was refused.
        TrainingError: If some failed.
    """
    failed = [outcome for outcome in outcomes if outcome.status]
    if not failed:
        return
    if all(outcome.status == REFUSED for outcome in outcomes):
        lines = {outcome.line for outcome in outcomes}
        raise UserError(f"every point of the sweep was refused: {lines.pop() if len(lines) == 1 else 'see above'}")
    names = ", ".join(outcome.point for outcome in failed)
    others = "The others are finished; the" if len(failed) < len(outcomes) else "The"
    raise TrainingError(
        f"{len(failed)} of {len(outcomes)} points failed: {names}. {others} same command tries those again"
    )


def check_sweep(points: Iterable[DictConfig], launcher: str) -> None:
    """Refuse an unsupported sweep before its first point starts.

    A point that runs in several processes needs a process group of its own, and so a fresh process: inside the process that
    sweeps, each of them would run the whole sweep.

    Args:
        points: Configurations.
        launcher: Name of the launcher's class.

    Raises:
        UserError: If a point runs in several processes and the launcher is not `submitit_slurm`, or this is one of several.
    """
    if place().world_size > 1:
        raise UserError(
            f"{place().started_by} has started {place().world_size} processes, and each of them would run the whole sweep: "
            "start one process with hydra/launcher=submitit_slurm, or a job array (slurm/sweep.sbatch)"
        )
    if launcher == IN_SLURM:
        return
    for cfg in points:
        if OmegaConf.select(cfg, "trainer") is not None and _num_processes(cfg) > 1:
            raise UserError(
                "a sweep (-m) of runs in several processes needs a fresh process group for each: take "
                "hydra/launcher=submitit_slurm, a job array (slurm/sweep.sbatch), or one device (trainer=default)"
            )


def _num_processes(cfg: DictConfig) -> int:
    from trilemma.distributed.devices import process_count  # torch is needed for this only
    from trilemma.quiet import quieten

    quieten()
    names = ("devices", "num_nodes", "accelerator", "strategy")
    return process_count(
        {name: _plain(cfg.trainer.get(name, "auto")) for name in names if name in cfg.trainer}
    ).num_processes


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
