"""Atomic writing of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from trilemma.atomic import atomic_write
from trilemma.checkpoints.read import read_checkpoint

_Path = str | os.PathLike[str]


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints that are complete or absent, and that hold tensors and plain containers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint under a temporary name, flush it and rename it.

        Raises:
            TypeError: If it holds an object that `weights_only` loading would refuse; the file is then not written.
            UserError: If the file system refuses.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported")
        with atomic_write(path) as handle:
            torch.save(checkpoint, handle)
            handle.seek(0)
            objects = torch.serialization.get_unsafe_globals_in_checkpoint(handle)
            if objects:
                raise TypeError(f"a checkpoint holds tensors and plain containers only, not {', '.join(objects)}")
            handle.seek(0, os.SEEK_END)

    def load_checkpoint(
        self, path: _Path, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; nothing in it is ever executed, whatever `weights_only` says.

        Raises:
            UserError: If it is missing, damaged, or not one of ours.
        """
        return read_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: _Path) -> None:
        """Remove a checkpoint if it is there."""
        Path(path).unlink(missing_ok=True)
