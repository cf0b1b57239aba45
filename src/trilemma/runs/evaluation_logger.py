"""Where `evaluate.py` logs besides its files: nowhere, or to wandb."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.errors import UserError
from trilemma.evaluation.rows import Row
from trilemma.runs.check import reject_unknown
from trilemma.runs.subject import Subject
from trilemma.runs.wandb_evaluation import check_options, log_evaluation, log_report

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

    def row(self, row: Row, path: Path, subject: Subject) -> None:
        """One run a row, with the pictures that lie beside it."""
        if self.options is None:
            return
        pictures = {"samples": path.with_suffix(".png"), "neighbours": path.with_name(f"{path.stem}-neighbours.png")}
        experiment = str(subject.config.get("experiment"))
        log_evaluation(
            row,
            {name: picture for name, picture in pictures.items() if picture.is_file()},
            save_dir=path.parent,
            group=experiment,
            run_id=f"{experiment}-{subject.config.get('run_id')}-{path.stem.removeprefix(subject.slug + '-')}",
            **self.options,
        )

    def report(self, folder: Path) -> None:
        """One run a report, with the pictures that belong to it."""
        if self.options is None:
            return
        pictures = {name: folder / f"{name}.png" for name in ("trilemma", "samples")}
        found = {name: picture for name, picture in pictures.items() if picture.is_file()}
        digest = hashlib.sha256((folder / "report.html").read_bytes()).hexdigest()
        log_report(found, save_dir=folder, run_id=f"report-{digest[:8]}", **self.options)


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
    check_options(options)
    return EvaluationLogger(options)
