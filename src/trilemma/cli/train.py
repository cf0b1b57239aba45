"""What `train.py` does: check, hold the run's directory, train. It imports torch when nothing is left to refuse without it."""

from __future__ import annotations

import re
from contextlib import ExitStack, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from trilemma.cli.main import checked
from trilemma.config import schema
from trilemma.config.check import check_config
from trilemma.config.nodes import drop_recipe
from trilemma.config.swapped import drop_foreign
from trilemma.distributed import signals
from trilemma.distributed.job import Job, leave_group, this_job
from trilemma.errors import UserError
from trilemma.quiet import quieten
from trilemma.runs.directory import prepare
from trilemma.runs.lock import run_lock
from trilemma.sweeps.objective import objective
from trilemma.sweeps.points import in_sweep

_MAX_NAME = 200  # bytes; of a file name, file systems take 255


def train(cfg: DictConfig) -> float | None:
    """Train the model that `cfg` describes, or go on where a run of this id stopped.

    With several processes, the first one decides what all do (see `Job`), holds the lock and writes.

    Returns:
        For a point of a sweep, in the first process: what it is judged by (see `objective`).

    Raises:
        UserError: For anything that the user can fix, before training starts.
        TrainingError: If a monitor ended training.
        Stopped: If a signal did, with everything written.
    """
    job = this_job()
    with ExitStack() as held:
        held.callback(leave_group)
        if job.is_first:
            held.callback(_remove_if_empty, Path(str(cfg.paths.run_dir)), Path(str(cfg.paths.output_dir)))
        return _train(cfg, job, held)


def _train(cfg: DictConfig, job: Job, held: ExitStack) -> float | None:
    if OmegaConf.select(cfg, "plan") is not None:
        job.broadcast("plan", lambda: _plan(cfg))  # debug=plan: nothing is read or trained
        return None
    with checked(lambda: _check(cfg)):
        from trilemma.cli.training import train_run
    with signals.waiting(*signals.PREEMPTION):
        run = job.broadcast("run", lambda: {"id": _run_id(cfg), "dir": str(cfg.paths.run_dir)})
        cfg.run.id, cfg.paths.run_dir = run["id"], run["dir"]
        job.broadcast("held", lambda: _hold(cfg, job, held))
        metrics = train_run(cfg, Path(run["dir"]), job)
    return objective(cfg, metrics) if in_sweep() and job.is_first else None


def _plan(cfg: DictConfig) -> None:
    _check_named(cfg)
    from trilemma.planning.table import show_plan

    show_plan(cfg)


def _check(cfg: DictConfig) -> None:
    _check_named(cfg)
    check_config(cfg, schema.TRAIN)
    quieten()


def _check_named(cfg: DictConfig) -> None:
    """See that there is something to train."""
    if OmegaConf.select(cfg, "oracle") is not None:
        raise UserError("an oracle is not trained: run python evaluate.py experiment=oracle/... instead")
    if OmegaConf.select(cfg, "model._target_") is None or OmegaConf.select(cfg, "data._target_") is None:
        raise UserError(
            "nothing to train: name an experiment, for example experiment=mnist/vqvae (python train.py --help lists them)"
        )
    drop_recipe(cfg)
    given = HydraConfig.get().overrides if HydraConfig.initialized() else None
    overrides = [] if given is None else [*(o for o in given.hydra if o.startswith("hydra.searchpath")), *given.task]
    if (dropped := drop_foreign(cfg, overrides)) and this_job().is_first:
        print(f"of the experiment fall away, with the parts that were swapped out: {', '.join(dropped)}", flush=True)
    _check_name("run.id", str(cfg.run.id))
    resume = str(cfg.run.resume)
    if resume not in ("auto", "never") and not Path(resume).is_file():
        raise UserError(f"run.resume={resume}: choose auto, never, or a checkpoint that is there")
    for part in str(cfg.experiment_name).split("/"):
        _check_name("experiment_name", part)


def _check_name(option: str, name: str) -> None:
    """See that a name makes one folder, below the one it belongs to."""
    if not name.strip() or name.startswith(".") or re.search(r"[/\\\x00-\x1f]", name) or len(name.encode()) > _MAX_NAME:
        raise UserError(
            f"{option}={name[:60]} makes no folder of its own: give a name of at most {_MAX_NAME} letters, without slashes and not "
            "beginning with a dot"
        )


def _run_id(cfg: DictConfig) -> str:
    """The id that was given; each point of a sweep has one of its own, as it has a directory."""
    return Path(cfg.paths.run_dir).name if in_sweep() else str(cfg.run.id)


def _hold(cfg: DictConfig, job: Job, held: ExitStack) -> None:
    run_dir = Path(cfg.paths.run_dir)
    held.enter_context(run_lock(run_dir, job.slurm_id))
    prepare(run_dir)


def _remove_if_empty(folder: Path, root: Path) -> None:
    """Remove the folders that Hydra made for a command that was refused, up to the root of all runs."""
    with suppress(OSError):  # one that is not empty
        while folder.is_relative_to(root):
            if folder.exists():
                folder.rmdir()
            folder = folder.parent
