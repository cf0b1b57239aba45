"""Where `evaluate.py` logs besides its files: nowhere, or to wandb."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from trilemma.config.check import check_node
from trilemma.errors import UserError

if TYPE_CHECKING:
    from trilemma.checkpoints.loaded import LoadedModel
    from trilemma.evaluation.rows import Row


class EvaluationLogger:
    """Logs rows and reports to wandb where `logger=wandb` asks for it.

    Args:
        options: Of the `WandbLogger` of each row; None logs nothing.
    """

    def __init__(self, options: dict[str, Any] | None) -> None:
        self.options = options

    def refuse(self, what: str) -> None:
        """Raise `UserError` if logging was asked for where there is nothing to log."""
        if self.options is not None:
            raise UserError(f"logger=wandb: {what}, of which wandb gets nothing; leave logger= out")

    def row(self, row: Row, path: Path, loaded: LoadedModel) -> None:
        """One run a row, with the pictures that lie beside it."""
        pictures = {"samples": path.with_suffix(".png"), "neighbours": path.with_name(f"{path.stem}-neighbours.png")}
        group = str(loaded.config.get("experiment"))
        identity = (
            f"{group}-{loaded.config.get('run_id')}-{path.stem.removeprefix(loaded.slug + '-')}-{loaded.sha256[:8]}"
        )
        self._log(row, pictures, run_id=identity, group=group, save_dir=str(path.parent), job_type="evaluate")

    def report(self, folder: Path) -> None:
        """One run a report, with the pictures that belong to it."""
        pictures = {name: folder / f"{name}.png" for name in ("trilemma", "samples")}
        digest = hashlib.sha256((folder / "report.html").read_bytes()).hexdigest()
        identity = f"report-{digest[:8]}"
        self._log({}, pictures, run_id=identity, group="report", save_dir=str(folder), job_type="report")

    def _log(self, row: Mapping[str, Any], pictures: Mapping[str, Path], **place: str) -> None:
        if self.options is not None:
            from trilemma.loggers.wandb import WandbLogger
            from trilemma.loggers.wandb_evaluation import log_evaluation

            log_evaluation(WandbLogger(**{**self.options, **place}), row, pictures)


def take_logger(cfg: DictConfig) -> EvaluationLogger:
    """Read the choice of `logger=` and take it out of the configuration, whose other loggers belong to training.

    Raises:
        UserError: If it is neither none nor wandb, or has an option that wandb would refuse.
    """
    chosen = OmegaConf.to_container(cfg.logger, resolve=False) or {}
    assert isinstance(chosen, dict)
    OmegaConf.update(cfg, "logger", None)
    if not chosen:
        return EvaluationLogger(None)
    if not isinstance(chosen.get("wandb"), dict):
        raise UserError(f"logger={', '.join(map(str, chosen))}: evaluate.py logs to wandb or not at all (logger=wandb)")
    node = {**chosen["wandb"], "run_id": "check", "group": "check", "save_dir": "."}
    check_node(node, "logger.wandb")
    options = {key: value for key, value in node.items() if key != "_target_"}

    from trilemma.loggers.wandb import WandbLogger

    WandbLogger(**{**options, "mode": "disabled"})
    return EvaluationLogger(options)
