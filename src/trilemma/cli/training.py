"""A training run whose configuration is checked and whose directory is held: data, model, fit, record."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from trilemma.atomic import atomic_write_text
from trilemma.callbacks.checkpoint import batch_of, step_checkpoints
from trilemma.callbacks.counting import num_batches as trained_batches
from trilemma.checkpoints.read import newest_valid, read_checkpoint
from trilemma.config.build import build
from trilemma.config.nodes import plain
from trilemma.data.base import ImageData
from trilemma.distributed import signals
from trilemma.distributed.job import Job, how_to_go_on
from trilemma.errors import Stopped, UserError
from trilemma.first_stage.model import build_model, check_parts
from trilemma.first_stage.recipe import differences, recipe_hash, recipe_of
from trilemma.loggers.settings import run_settings
from trilemma.models.base import Family
from trilemma.runs.directory import set_aside, write_origin
from trilemma.runs.facts import state_data
from trilemma.runs.fit import fit
from trilemma.runs.record import read_record, write_record
from trilemma.runs.trainer import build_trainer
from trilemma.sweeps.objective import validation_metrics

_RECIPE = "recipe.json"  # in the run directory
_MAX_SHOWN = 5  # settings that a refusal names


def train_run(cfg: DictConfig, run_dir: Path, job: Job) -> dict[str, float]:
    """Train, or go on.

    Args:
        cfg: As checked.
        run_dir: Held by this job.
        job: All processes of it call this.

    Returns:
        What the last validation of the run has logged.

    Raises:
        UserError: For anything that the user can fix, before training starts.
        TrainingError: If a monitor ended training.
        Stopped: If a signal did, with everything written.
    """
    parts = recipe_of(cfg)
    recipe, identity = recipe_hash(parts), recipe_hash(parts, with_length=False)
    num_batches = _num_batches(cfg)
    data = job.rank_zero_first("data", lambda: _set_up(cfg))
    where = {"experiment": cfg.experiment_name, "recipe": recipe, "identity": identity, "data": data.fingerprint}
    found = job.broadcast("found", lambda: _take_up(cfg, run_dir, job, parts, data.fingerprint, num_batches))
    if found["finished"]:
        return dict(found["metrics"])
    resume, cfg.facts.run = found["resume"], found["uid"]
    where["uid"] = found["uid"]
    trainer, model = job.rank_zero_first("built", lambda: _build(cfg, data, resume))
    if job.is_first:
        _write_inputs(cfg, data, run_dir)
        atomic_write_text(run_dir / _RECIPE, json.dumps(parts, indent=1, default=str) + "\n")
        write_record(run_dir, **where, status="running", checkpoint=None, num_batches=0, slurm_job=job.slurm_id)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        size = f"{parameters / 1e6:.2f} M trainable parameters"
        print(f"{cfg.experiment_name} · {size} · {num_batches} batches · {run_dir}", flush=True)
        if resume:
            print(f"Resuming from {resume}", flush=True)
    data.num_train_batches = num_batches
    for logger in trainer.loggers:
        logger.log_hyperparams(run_settings(cfg))
    job.broadcast(
        "start", lambda: None
    )  # up to here the first process checks for a signal for all; from here on they agree

    def note(status: str, checkpoint: Path | None, done: int, metrics: dict[str, float] | None = None) -> None:
        write_record(
            run_dir,
            **where,
            status=status,
            checkpoint=checkpoint,
            num_batches=done,
            metrics=metrics,
            slurm_job=job.slurm_id,
        )

    try:
        fit(trainer, model, data, resume)
    except Stopped as stop:
        if job.is_first:
            newest = next(iter(step_checkpoints(run_dir / "checkpoints")), None)
            done = 0 if newest is None else batch_of(newest)
            note("stopped", newest, done)
            stop.line = (
                f"stopped by {signals.name()} after {done} of {num_batches} batches: {newest or 'nothing is written yet'}; "
                f"{how_to_go_on(cfg.run.id)}"
            )
        raise
    except Exception:  # a monitor, what the user can fix, or a crash
        if job.is_first:
            note("stopped", newest_valid(run_dir / "checkpoints"), trained_batches(trainer))
        raise
    metrics = validation_metrics(trainer)
    if not job.is_first:
        return metrics
    newest = newest_valid(run_dir / "checkpoints")
    done = trained_batches(trainer)
    complete = newest is not None and done >= num_batches
    note("finished" if complete else "stopped", newest, done, metrics)
    if newest is None:  # without the callback that writes them
        print(f"Trained {done} of {num_batches} batches; no checkpoint was written", flush=True)
    else:
        print(
            f"Finished: {newest}" if complete else f"Stopped after {done} of {num_batches} batches: {newest}",
            flush=True,
        )
    return metrics


def _take_up(
    cfg: DictConfig, run_dir: Path, job: Job, recipe: dict[str, Any], fingerprint: str, num_batches: int
) -> dict[str, Any]:
    """What there is of this run: the checkpoint to go on from, if any, and whether nothing is left to do.

    What `run.resume` says holds for the command that was typed, not for SLURM's starting it again: a job that was requeued
    goes on with its own run whatever it was first told to start from.
    """
    record, new = read_record(run_dir), secrets.token_hex(4)
    requeued = record is not None and job.slurm_id is not None and record.get("slurm_job") == job.slurm_id
    if cfg.run.resume == "never" and not requeued:
        set_aside(run_dir)
        return {"resume": None, "finished": False, "uid": new}
    path: Path | None = None
    if cfg.run.resume == "auto" or requeued:
        path = newest_valid(run_dir / "checkpoints")
    if path is None and cfg.run.resume not in ("auto", "never"):
        path = Path(cfg.run.resume)
        read_checkpoint(path)
    if path is None or record is None:
        return {"resume": None if path is None else str(path), "finished": False, "uid": new}
    started = _recipe_in(run_dir)
    changed = [] if not started else list(differences(started, json.loads(json.dumps(recipe, default=str))))
    if record["data"] != fingerprint or record["identity"] != recipe_hash(recipe, with_length=False):
        others = [change for change in changed if not change.startswith("trainer.max_steps ")]
        if record["data"] != fingerprint:
            others.append("the content of the data")
        what = ", ".join(others[:_MAX_SHOWN]) + (", ..." if len(others) > _MAX_SHOWN else "") or "other settings"
        raise UserError(
            f"run.id={cfg.run.id} was started with other settings or data than this command names; what differs: {what}. Take another "
            f"run.id (with run.resume={path} it goes on from this checkpoint), or run.resume=never, which moves the old run aside"
        )
    for change in changed:  # of the run's length alone
        print(f"{change}: a learning-rate schedule over the run is that of the new length from here on", flush=True)
    finished = record["status"] == "finished" and record["num_batches"] >= num_batches
    if finished:
        print(
            f"Finished already: {run_dir} ({record['num_batches']} batches). Newest checkpoint: {record['checkpoint']}"
        )
    # Runs of earlier versions have no identity but their name.
    return {"resume": str(path), "finished": finished, "metrics": record.get("metrics") or {}, "uid": record.get("uid")}


def _recipe_in(run_dir: Path) -> dict[str, Any]:
    """Read the recipe that a run was started with; empty where an earlier version has written none."""
    try:
        found = json.loads((run_dir / _RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _build(cfg: DictConfig, data: ImageData, resume: str | None) -> tuple[Trainer, Family]:
    # What needs no codec is built before one is trained for an hour.
    trainer = build_trainer(cfg)
    check_parts(cfg)
    if cfg.init_from and not resume:
        read_checkpoint(cfg.init_from)
    return trainer, build_model(cfg, data, resume)


def _set_up(cfg: DictConfig) -> ImageData:
    """Threads, seeds, data and the facts the data states."""
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    if cfg.deterministic:
        torch.use_deterministic_algorithms(True)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = build(plain(cfg, "data"), where="data")
    if not isinstance(data, ImageData):
        raise UserError(f"data._target_={cfg.data._target_} is not a data set")
    data.setup("fit")
    state_data(cfg, data)
    return data


def _num_batches(cfg: DictConfig) -> int:
    accumulate = OmegaConf.select(cfg, "model.accumulate_grad_batches") or cfg.trainer.accumulate_grad_batches
    return int(cfg.trainer.max_steps) * int(accumulate)


def _write_inputs(cfg: DictConfig, data: ImageData, run_dir: Path) -> None:
    """The resolved configuration, the data's splits, the command and the versions of everything, into the run directory."""
    shown = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    atomic_write_text(run_dir / "config.yaml", OmegaConf.to_yaml(shown, resolve=True))
    atomic_write_text(run_dir / "splits.yaml", OmegaConf.to_yaml(OmegaConf.create(data.split_record())))
    write_origin(run_dir)
