"""A row of results as `evaluate.py` wrote it: every number by its name, or None where the row has none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilemma.evaluation.rows import read_row as load_row


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        name: Of its file, without the ending.
        content: What the file holds.
        samples: Picture of a grid of samples, where there is one.
        neighbours: Picture of the samples closest to the training set beside what they are close to.
    """

    name: str
    content: Mapping[str, Any]
    samples: Path | None = None
    neighbours: Path | None = None

    @property
    def protocol(self) -> Mapping[str, Any]:
        """How it was made."""
        return self.part("protocol")

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of the row; empty where it is missing."""
        found = self.content.get(name)
        return found if isinstance(found, Mapping) else {}

    def number(self, *path: str) -> float | None:
        """The number under these names, one within the other; None where there is none.

        `{FD}` stands for the name of the Frechet distance with this row's extractor, and so on for any word in braces.
        """
        return number(self.content, *(self._spelt(name) for name in path))

    def is_smoke(self) -> bool:
        """Whether it has too few images to compare models by."""
        return self.protocol.get("tier") == "smoke"

    def _spelt(self, name: str) -> str:
        if name.startswith("{") and name.endswith("}"):
            return f"{name[1:-1]}[{self.protocol.get('extractor')}]"
        return name


@dataclass(frozen=True)
class Entry:
    """The rows of one model: of one checkpoint, or of checkpoints that differ in the seed of their training alone."""

    name: str
    rows: tuple[Row, ...]


def number(content: Any, *path: str) -> float | None:
    """A number within nested mappings; "nan" and "inf" are numbers, which JSON has no word for."""
    for name in path:
        content = content.get(name) if isinstance(content, Mapping) else None
    if isinstance(content, str):
        try:
            return float(content)
        except ValueError:
            return None
    return float(content) if isinstance(content, (int, float)) and not isinstance(content, bool) else None


def finite(value: float | None) -> bool:
    """Whether it is a number that can be drawn and averaged."""
    return value is not None and math.isfinite(value)


def read_row(path: str | Path) -> Row:
    """Read a row and find the pictures that lie beside it, `<name>.png` and `<name>-neighbours.png`.

    Raises:
        UserError: If the file is missing or is no row of results.
    """
    path = Path(path)
    content = load_row(path)
    samples, neighbours = path.with_suffix(".png"), path.with_name(f"{path.stem}-neighbours.png")
    return Row(path.stem, content, samples if samples.is_file() else None, neighbours if neighbours.is_file() else None)
