"""Metrics in one plain file that survives kills and resumes."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Set
from itertools import takewhile
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from trilemma.atomic import atomic_write_text
from trilemma.errors import UserError

FILE = "metrics.csv"


class CSVLogger(Logger):
    """Appends one row for each call to `<save_dir>/metrics.csv`; cells of metrics that a call lacks are empty.

    A row is handed to the operating system at once, so a killed process loses none. Its first row tells where a resumed
    run has gone back to: what it repeats, and all rows after that, were written by a process that was stopped after its last
    checkpoint, and are dropped. A new metric rewrites the file with one more column.

    Args:
        save_dir: The run directory.
    """

    def __init__(self, save_dir: str | os.PathLike[str]) -> None:
        super().__init__()
        self._folder = Path(save_dir)
        self._columns: list[str] = []  # empty until the first row

    @property
    def path(self) -> Path:
        """The file."""
        return self._folder / FILE

    @property
    def save_dir(self) -> str:
        """The run directory."""
        return str(self._folder)

    @property
    def name(self) -> str:
        """Nothing: the file lies in the run directory itself."""
        return ""

    @property
    def version(self) -> str:
        """Nothing: there is one file a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any) -> None:
        """Nothing: the run directory holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Args:
            metrics: Numbers by name.
            step: Of the trainer.

        Raises:
            UserError: If the file cannot be written.
        """
        if step is None:
            raise ValueError("a row of metrics needs its step")
        row = {"step": step, **metrics}
        if not self._columns:
            self._take_up(step, metrics)
        if new := [name for name in row if name not in self._columns]:
            self._rewrite([*self._columns, *new], self._rows())
        try:
            with self.path.open("a", newline="", encoding="utf-8") as handle:
                handle.write(_line([row.get(name, "") for name in self._columns]))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; free some space and resume") from error

    def _take_up(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep what came before this row: of its own step too, where a validation is done that a stop had put off."""
        rows = self._rows()
        names = metrics.keys() - {"epoch"}
        kept = list(takewhile(lambda row: int(row["step"]) <= step and not _repeats(row, step, names), rows))
        self._rewrite(list(rows[0]) if rows else ["step", "epoch"], kept)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a power cut may leave half a line
        return list(csv.DictReader(io.StringIO(whole)))

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        lines = [_line(columns), *(_line([row.get(name, "") for name in columns]) for row in rows)]
        atomic_write_text(self.path, "".join(lines))
        self._columns = columns


def _repeats(row: dict[str, str], step: int, names: Set[str]) -> bool:
    return int(row["step"]) == step and any(row.get(name) for name in names)


def _line(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
