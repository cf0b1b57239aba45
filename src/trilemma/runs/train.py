"""What `train.py` does: check, build, fit, in one run directory."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from trilemma.atomic import atomic_write_text
from trilemma.callbacks.counting import num_batches as trained_batches
from trilemma.data.base import ImageData
from trilemma.errors import TrainingError, UserError
from trilemma.runs import schema
from trilemma.runs.build import build
from trilemma.runs.check import check_config
from trilemma.runs.checkpoint import newest_valid, read_checkpoint
from trilemma.runs.codec import drop_recipe, is_multi_process, recipe_hash
from trilemma.runs.directory import prepare, set_aside, write_versions
from trilemma.runs.facts import plain, state_data
from trilemma.runs.lock import run_lock
from trilemma.runs.model import build_model
from trilemma.runs.plan.show import show_plan
from trilemma.runs.quiet import quieten
from trilemma.runs.record import read_record, write_record
from trilemma.runs.shown import run_settings
from trilemma.runs.trainer import build_trainer


def train(cfg: DictConfig) -> None:
    """Train the model that `cfg` describes, or go on where a run of this id stopped.

    Raises:
        UserError: For anything that is the user's to mend, before training starts.
        TrainingError: If a monitor ended training.
    """
    if OmegaConf.select(cfg, "oracle") is not None:
        raise UserError("an oracle is not trained: run python evaluate.py experiment=oracle/... instead")
    if OmegaConf.select(cfg, "model._target_") is None or OmegaConf.select(cfg, "data._target_") is None:
        raise UserError(
            "nothing to train: name an experiment, for example experiment=mnist/vqvae (python train.py --help lists them)"
        )
    drop_recipe(cfg)
    if OmegaConf.select(cfg, "plan") is not None:
        show_plan(cfg)  # debug=plan: nothing is read or trained
        return
    check_config(cfg, schema.TRAIN)
    _refuse_in_process_sweep(cfg)
    quieten()
    run_dir = Path(cfg.paths.run_dir)
    if _rank():  # the first process of the job holds the lock and writes for all
        _train(cfg, run_dir)
        return
    prepare(run_dir)
    with run_lock(run_dir):
        _train(cfg, run_dir)


def _train(cfg: DictConfig, run_dir: Path) -> None:
    recipe, identity = recipe_hash(cfg), recipe_hash(cfg, with_length=False)
    num_batches = _num_batches(cfg)
    data = _set_up(cfg)
    if cfg.run.resume == "never":
        set_aside(run_dir)
    resume = _checkpoint_to_resume(cfg, run_dir)
    record = read_record(run_dir)
    if resume and record:
        if record["data"] != data.fingerprint or record["identity"] != identity:
            raise UserError(
                f"run.id={cfg.run.id} was started with other settings or data than this command names: "
                "take another run.id, or run.resume=never"
            )
        if record["status"] == "finished" and record["num_batches"] >= num_batches:
            print(
                f"Finished already: {run_dir} ({record['num_batches']} batches). Newest checkpoint: {record['checkpoint']}"
            )
            return
    # What needs no codec is built before one is trained for an hour.
    trainer = build_trainer(cfg)
    for node in ("sampler", "guidance"):
        build(plain(cfg, node), where=node)
    if cfg.init_from and not resume:
        read_checkpoint(cfg.init_from)

    model = build_model(cfg, data, resume)
    where = {"experiment": cfg.experiment_name, "recipe": recipe, "identity": identity, "data": data.fingerprint}
    if not _rank():
        _write_inputs(cfg, data, run_dir)
        write_record(run_dir, **where, status="running", checkpoint=None, num_batches=0)
        parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        size = f"{parameters / 1e6:.2f} M trainable parameters"
        print(f"{cfg.experiment_name} · {size} · {num_batches} batches · {run_dir}", flush=True)
        if resume:
            print(f"Resuming from {resume}", flush=True)
    data.num_train_batches = num_batches
    for logger in trainer.loggers:
        logger.log_hyperparams(run_settings(cfg))
    try:
        trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning makes Ctrl-C an exit of its own
            raise KeyboardInterrupt from None
        raise
    except TrainingError:
        if not _rank():
            done, newest = trained_batches(trainer), newest_valid(run_dir / "checkpoints")
            write_record(run_dir, **where, status="stopped", checkpoint=newest, num_batches=done)
        raise
    if _rank():
        return
    newest = newest_valid(run_dir / "checkpoints")
    done = trained_batches(trainer)
    complete = newest is not None and done >= num_batches
    write_record(run_dir, **where, status="finished" if complete else "stopped", checkpoint=newest, num_batches=done)
    print(f"Finished: {newest}" if complete else f"Stopped after {done} of {num_batches} batches: {newest}", flush=True)


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


def _rank() -> int:
    """This process's number in its job."""
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def _num_batches(cfg: DictConfig) -> int:
    if cfg.trainer.max_steps < 1:
        raise UserError(f"trainer.max_steps={cfg.trainer.max_steps}: a run needs at least one step")
    accumulate = OmegaConf.select(cfg, "model.accumulate_grad_batches") or cfg.trainer.accumulate_grad_batches
    return int(cfg.trainer.max_steps) * int(accumulate)


def _checkpoint_to_resume(cfg: DictConfig, run_dir: Path) -> str | None:
    """`run.resume`: auto = the newest valid checkpoint of this run; never = a clean start; else a path."""
    if cfg.run.resume == "never":
        return None
    if cfg.run.resume != "auto":
        path = Path(cfg.run.resume)
        read_checkpoint(path)
        return str(path)
    newest = newest_valid(run_dir / "checkpoints")
    return None if newest is None else str(newest)


def _write_inputs(cfg: DictConfig, data: ImageData, run_dir: Path) -> None:
    """The resolved configuration, the data's splits and the versions of everything, into the run directory."""
    shown = OmegaConf.masked_copy(cfg, [str(k) for k in cfg if k != "hydra"])
    atomic_write_text(run_dir / "config.yaml", OmegaConf.to_yaml(shown, resolve=True))
    atomic_write_text(run_dir / "splits.yaml", OmegaConf.to_yaml(OmegaConf.create(data.split_record())))
    write_versions(run_dir)


def _refuse_in_process_sweep(cfg: DictConfig) -> None:
    """Several devices inside an in-process sweep: every rank would walk the whole sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode is not RunMode.MULTIRUN:
        return
    if is_multi_process(cfg):
        raise UserError(
            "a sweep (-m) of multi-process jobs needs one fresh process group a point: take hydra/launcher=submitit_slurm, "
            "or one device (trainer=default)"
        )
