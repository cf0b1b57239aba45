"""The number that a sweep judges a run by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lightning import Trainer
from omegaconf import DictConfig

from trilemma.errors import UserError
from trilemma.runs.targets import COMMAND_LINE, locate


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """What the last validation logged, by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def monitor_of(cfg: DictConfig) -> tuple[str, Literal["min", "max"]] | None:
    """The validation metric that the model's family is judged by, and whether less or more of it is better."""
    family = locate(cfg.model._target_, COMMAND_LINE, "model")
    monitor: tuple[str, Literal["min", "max"]] | None = getattr(family, "monitor", None)
    return monitor


def objective(cfg: DictConfig, metrics: Mapping[str, float]) -> float | None:
    """The metric that `optimized_metric` names, else the model's own; None where there is neither.

    Args:
        cfg: Of the run.
        metrics: Of its last validation.

    Raises:
        UserError: If it was not logged.
    """
    monitor = monitor_of(cfg)
    name = cfg.optimized_metric or (monitor[0] if monitor else None)
    if name is None:
        return None
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise UserError(f"optimized_metric={name} is not logged in validation; there is: {known}")
    return metrics[name]
