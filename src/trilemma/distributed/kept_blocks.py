"""Blocks of images saved when drawing is stopped, so that hours of drawing are not repeated."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from trilemma.atomic import atomic_write

_PERIOD = 60.0  # seconds of work that a killed process may lose; shorter work is not kept


class KeptBlocks:
    """Saves the blocks that a process draws into a folder, every minute, and the rest when it is stopped.

    Args:
        folder: Where blocks are kept; its name holds a hash of all they depend on. None keeps nothing.
        period: Seconds between two files.
    """

    def __init__(self, folder: Path | None, *, period: float = _PERIOD) -> None:
        self._folder, self._period = folder, period
        self._left: dict[str, Any] = {}
        self._begun, self._is_long = time.monotonic(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or self._is_long:
            self._write()

    def add(self, indices: range, block: Any) -> None:
        """Add a finished block."""
        if self._folder is not None:
            self._left[_name(indices)] = block
            if time.monotonic() - self._begun > self._period:
                self._is_long = True
                self._write()

    def _write(self) -> None:
        if self._folder is not None and self._left:
            first = next(iter(self._left))
            with atomic_write(self._folder / f"{first}.pt") as handle:
                torch.save(self._left, handle)
            self._left = {}
        self._begun = time.monotonic()


def read_kept(folder: Path, blocks: list[range]) -> dict[range, Tensor]:
    """Load those of the blocks that lie in a folder; a damaged file is skipped."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.pt")):
        try:
            found |= torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # torch raises many types for damaged files: OSError, RuntimeError, UnpicklingError, ...
            print(f"warning: {path} is damaged; its images are drawn again")
    return {indices: found[_name(indices)] for indices in blocks if _name(indices) in found}


def discard(folder: Path) -> None:
    """Remove the saved blocks once their content is part of a finished file."""
    shutil.rmtree(folder, ignore_errors=True)


def _name(indices: range) -> str:
    return f"{indices.start:08d}-{indices.stop:08d}"
