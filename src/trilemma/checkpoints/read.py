"""Read checkpoints that may be missing, damaged, foreign or hostile."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from trilemma.callbacks.checkpoint import step_checkpoints
from trilemma.checkpoints.archive import check_archive, not_ours
from trilemma.errors import UserError
from trilemma.models.base import CHECKPOINT_FORMAT


def read_checkpoint(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint and check that it is complete and of this project.

    Every record's checksum is verified, and nothing in the file is executed: pickled objects other than tensors and
    plain containers are refused.

    Args:
        path: The file.
        map_location: Where tensors are put, as in `torch.load`.

    Returns:
        The checkpoint: `state_dict`, `trilemma` (format, version, config), and the state of training.

    Raises:
        UserError: If the file is missing, truncated, damaged, not a Trilemma checkpoint, or holds code.
    """
    file = Path(path)
    check_archive(file, records=True)
    try:
        checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        objects = ", ".join(_unsafe_objects(file)) or "unknown objects"
        raise UserError(
            f"{file} is refused: beside weights it holds pickled objects ({objects}), which may run code; use a"
            " checkpoint that Trilemma wrote"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... for archives that are not its own
        raise not_ours(file) from error
    mark = checkpoint.get("trilemma") if isinstance(checkpoint, dict) else None
    if not isinstance(mark, dict) or "format" not in mark:
        raise not_ours(file)
    if mark["format"] != CHECKPOINT_FORMAT:
        age = "an older" if str(mark["format"]) < str(CHECKPOINT_FORMAT) else "a newer"
        raise UserError(
            f"{file} was written by {age} Trilemma (checkpoint format {mark['format']}, this one reads {CHECKPOINT_FORMAT}): use "
            "the version that wrote it, or train again"
        )
    return dict(checkpoint)


def newest_valid(folder: str | os.PathLike[str]) -> Path | None:
    """Find the newest readable periodic checkpoint of `folder`; a damaged one is named on stderr and skipped."""
    for path in step_checkpoints(Path(folder)):
        try:
            read_checkpoint(path)
        except UserError as error:
            print(f"WARNING: {error}; the checkpoint before it is used", file=sys.stderr)
        else:
            return path
    return None


def _unsafe_objects(file: Path) -> list[str]:
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except Exception:  # only to name the culprit in a message; the file is refused either way
        return []
