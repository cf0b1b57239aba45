"""The objective of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from omegaconf import DictConfig

from trilemma.config.targets import COMMAND_LINE, locate
from trilemma.errors import UserError

if TYPE_CHECKING:
    from lightning import Trainer


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """Collect what the last validation logged, by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


def monitor_of(cfg: DictConfig) -> tuple[str, Literal["min", "max"]] | None:
    """Find the validation metric that the model's family monitors, and whether less or more of it is better."""
    family = locate(cfg.model._target_, COMMAND_LINE, "model")
    monitor: tuple[str, Literal["min", "max"]] | None = getattr(family, "monitor", None)
    return monitor


def objective(cfg: DictConfig, metrics: Mapping[str, float]) -> float | None:
    """Look up the metric that `optimized_metric` names, else the model's own; None without either, or without a validation.

    Args:
        cfg: Configuration of the run.
        metrics: Metrics of its last validation.

    Raises:
        UserError: If validations do not log the one that is named.
    """
    monitor = monitor_of(cfg)
    named = cfg.optimized_metric
    if named is not None and metrics and named not in metrics:
        raise UserError(f"optimized_metric={named} is not logged in validation; there is: {', '.join(sorted(metrics))}")
    name = named or (monitor[0] if monitor else None)
    return metrics.get(name) if name else None
