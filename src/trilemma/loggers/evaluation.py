"""Where `evaluate.py` logs besides its files: nowhere, or to wandb."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from omegaconf import DictConfig, OmegaConf

from trilemma.config.check import reject_unknown
from trilemma.errors import UserError
from trilemma.loggers.wandb_mode import Mode
from trilemma.loggers.wandb_profile import Profile
from trilemma.loggers.wandb_run import RunPlan

if TYPE_CHECKING:
    from trilemma.checkpoints.loaded import LoadedModel
    from trilemma.evaluation.rows import Row

_OPTIONS = ("project", "tags", "mode", "profile", "init_timeout", "finish_timeout")
_OF_TRAINING = ("_target_", "run_id", "group", "save_dir", "job_type")  # an evaluation has its own


class EvaluationLogger:
    """Logs rows and reports to wandb where `logger=wandb` asks for it.

    Args:
        options: Of the wandb runs; None logs nothing.
    """

    def __init__(self, options: dict[str, Any] | None) -> None:
        self.options = options

    def refuse(self, what: str) -> None:
        """Raise `UserError` if logging was asked for where there is nothing to log."""
        if self.options is not None:
            raise UserError(f"logger=wandb: {what}, of which wandb gets nothing; leave logger= out")

    def row(self, row: Row, path: Path, loaded: LoadedModel) -> None:
        """One run a row, with the pictures that lie beside it."""
        if self.options is None:
            return
        from trilemma.loggers.wandb_evaluation import log_evaluation

        pictures = {"samples": path.with_suffix(".png"), "neighbours": path.with_name(f"{path.stem}-neighbours.png")}
        experiment = str(loaded.config.get("experiment"))
        plan = RunPlan(
            save_dir=path.parent,
            group=experiment,
            job_type="evaluate",
            run_id=f"{experiment}-{loaded.config.get('run_id')}-{path.stem.removeprefix(loaded.slug + '-')}",
            **self.options,
        )
        log_evaluation(plan, row, {name: picture for name, picture in pictures.items() if picture.is_file()})

    def report(self, folder: Path) -> None:
        """One run a report, with the pictures that belong to it."""
        if self.options is None:
            return
        from trilemma.loggers.wandb_evaluation import log_report

        pictures = {name: folder / f"{name}.png" for name in ("trilemma", "samples")}
        found = {name: picture for name, picture in pictures.items() if picture.is_file()}
        digest = hashlib.sha256((folder / "report.html").read_bytes()).hexdigest()
        identity = f"report-{digest[:8]}"
        plan = RunPlan(save_dir=folder, group="report", job_type="report", run_id=identity, **self.options)
        log_report(plan, found)


def take_logger(cfg: DictConfig) -> EvaluationLogger:
    """Read the choice of `logger=` and take it out of the configuration, whose other loggers belong to training.

    Raises:
        UserError: If it is neither none nor wandb, or has an unknown option.
    """
    chosen = OmegaConf.to_container(cfg.logger, resolve=False) or {}
    assert isinstance(chosen, dict)
    OmegaConf.update(cfg, "logger", None)
    if not chosen:
        return EvaluationLogger(None)
    node = chosen.get("wandb")
    if not isinstance(node, dict):
        raise UserError(f"logger={', '.join(map(str, chosen))}: evaluate.py logs to wandb or not at all (logger=wandb)")
    reject_unknown([str(key) for key in node], (*_OPTIONS, *_OF_TRAINING), "logger.wandb")
    options = {key: node[key] for key in _OPTIONS if key in node}
    for key, choices in (("mode", get_args(Mode)), ("profile", get_args(Profile))):
        if options.get(key, choices[0]) not in choices:
            raise UserError(f"logger.wandb.{key}={options[key]}: choose one of {', '.join(choices)}")
    RunPlan(run_id="check", group="check", save_dir=Path(), job_type="evaluate", **options)  # refuses what wandb would
    return EvaluationLogger(options)
