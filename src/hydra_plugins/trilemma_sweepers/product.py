"""Every combination of the values that are given: Hydra's own sweeper, with points that are checked first and may fail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from trilemma.sweeps.launchers import explained
from trilemma.sweeps.points import PointResult, check_sweep, conclude


class ProductSweeper(BasicSweeper):
    """Runs all points whatever becomes of one, and says at the end which failed.

    Args:
        max_batch_size: Points that are launched at once; None launches all.
        params: Values that are swept beside those of the command line.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher.

        Raises:
            UserError: If it is not installed.
        """
        with explained(config):
            super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """As Hydra's own, with what varies first: a point is named by it."""
        varied = [override for override in overrides if override.is_sweep_override()]
        others = [override for override in overrides if not override.is_sweep_override()]
        batches: list[list[list[str]]] = BasicSweeper.split_arguments([*varied, *others], max_batch_size)
        return batches

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose every point and see that it can be swept."""
        assert self.hydra_context is not None
        assert self.config is not None
        loader = self.hydra_context.config_loader
        points = (loader.load_sweep_config(self.config, list(overrides)) for overrides in batch)
        check_sweep(points, type(self.launcher).__name__)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all points.

        Raises:
            UserError: If the sweep cannot run so, or every point was refused.
            TrainingError: If some points failed.
        """
        returned = super().sweep(arguments)
        values = [result.return_value for batch in returned for result in batch]
        outcomes = [value for value in values if isinstance(value, PointResult)]
        for outcome in outcomes:
            if outcome.value is not None:
                print(f"{outcome.value:.6g}  {outcome.point}")
        conclude(outcomes)
        return returned
