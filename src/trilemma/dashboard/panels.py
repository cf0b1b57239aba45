"""What a dashboard consists of, apart from how wandb writes it down.

A panel knows the metrics it shows (`keys`) and the settings it reads from a run's config (`settings`), so that both can be
compared with what runs log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from trilemma.errors import UserError

STEP = "trainer/global_step"


class Panel(ABC):
    """One picture of a dashboard.

    Args:
        title: Shown above it.
        keys: Metrics and pictures it shows.
        settings: Entries of the runs' config it shows, with dots between levels.
    """

    def __init__(self, title: str, *, keys: Sequence[str] = (), settings: Sequence[str] = ()) -> None:
        self.title = title
        self.keys = tuple(keys)
        self.settings = tuple(settings)

    @abstractmethod
    def to_wandb(self, reports: Any) -> Any:
        """The panel as `wandb_workspaces.reports.v2`, handed in because it is an optional dependency, has it."""


class Lines(Panel):
    """Metrics over the course of training.

    Args:
        title: Shown above it.
        keys: One line each, for every run.
        x: What lies below; a metric.
        log_y: Logarithmic height.
    """

    def __init__(self, *, title: str, keys: Sequence[str], x: str = STEP, log_y: bool = False) -> None:
        if not keys:
            raise UserError(f"dashboard: the panel {title!r} shows no keys")
        super().__init__(title, keys=[*keys, x])
        self.y = list(keys)
        self.x = x
        self.log_y = log_y

    def to_wandb(self, reports: Any) -> Any:
        """See `Panel`."""
        return reports.LinePlot(title=self.title, x=self.x, y=self.y, log_y=self.log_y or None)


class Scatter(Panel):
    """One dot a run: its last value of one metric against another, or against a setting.

    Args:
        title: Shown above it.
        y: A metric.
        x: A metric; or
        x_setting: an entry of the runs' config.
        log_x: Logarithmic width.
        log_y: Logarithmic height.
    """

    def __init__(
        self,
        *,
        title: str,
        y: str,
        x: str | None = None,
        x_setting: str | None = None,
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        if (x is None) == (x_setting is None):
            raise UserError(
                f"dashboard: the panel {title!r} needs either x, a metric, or x_setting, an entry of the config"
            )
        super().__init__(title, keys=[y] if x is None else [y, x], settings=[] if x_setting is None else [x_setting])
        self.y = y
        self.x = x
        self.x_setting = x_setting
        self.log_x = log_x
        self.log_y = log_y

    def to_wandb(self, reports: Any) -> Any:
        """See `Panel`."""
        return reports.ScatterPlot(
            title=self.title,
            x=reports.Config(self.x_setting) if self.x is None else reports.SummaryMetric(self.x),
            y=reports.SummaryMetric(self.y),
            log_x=self.log_x or None,
            log_y=self.log_y or None,
        )


class Pictures(Panel):
    """Pictures, with a slider over training.

    Args:
        title: Shown above it.
        keys: Names of the pictures.
    """

    def __init__(self, *, title: str, keys: Sequence[str]) -> None:
        if not keys:
            raise UserError(f"dashboard: the panel {title!r} shows no keys")
        super().__init__(title, keys=keys)

    def to_wandb(self, reports: Any) -> Any:
        """See `Panel`."""
        return reports.MediaBrowser(title=self.title, media_keys=list(self.keys))


class RunComparer(Panel):
    """The settings and last metrics of the runs side by side.

    Args:
        only_differences: Leave out what is the same in all.
    """

    def __init__(self, *, only_differences: bool = True) -> None:
        super().__init__("Runs side by side")
        self.only_differences = only_differences

    def to_wandb(self, reports: Any) -> Any:
        """See `Panel`."""
        return reports.RunComparer(diff_only=self.only_differences or None)


class Section:
    """Panels under one heading.

    Args:
        title: The heading.
        panels: From left to right.
        is_open: Whether they are seen at once.
    """

    def __init__(self, *, title: str, panels: Sequence[Panel], is_open: bool = True) -> None:
        if not panels or not all(isinstance(panel, Panel) for panel in panels):
            raise UserError(
                f"dashboard: the section {title!r} needs panels, each with a _target_ in trilemma.dashboard.panels"
            )
        self.title = title
        self.panels = tuple(panels)
        self.is_open = is_open
