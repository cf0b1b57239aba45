"""The file of a checkpoint: whether it is there, and whole. It needs no torch."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from trilemma.errors import UserError

_ZIP_MAGIC = b"PK"


def checkpoint_in(path: str) -> str:
    """Give the newest checkpoint of a run directory; a path to anything else as it is.

    Raises:
        UserError: If the folder holds none.
    """
    folder = Path(path)
    if not folder.is_dir():
        return path
    for candidate in (folder / "checkpoints" / "last.ckpt", folder / "last.ckpt"):
        if candidate.is_file():
            return str(candidate)
    raise UserError(
        f"{folder} is a folder without checkpoints/last.ckpt: name a checkpoint, or the directory of a run that wrote one"
    )


def check_archive(path: str | os.PathLike[str], *, records: bool = False) -> None:
    """See that a checkpoint exists and is an archive that was written to its end.

    Args:
        path: The file.
        records: Verify the checksum of every record too, which reads it all.

    Raises:
        UserError: If it is missing, truncated, damaged or not a checkpoint.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there is no checkpoint {file}: check the path")
    try:
        with file.open("rb") as handle:
            magic = handle.read(2)
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip() if records else None
    except PermissionError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error
    except Exception as error:  # a damaged directory makes zipfile raise almost anything
        # An empty file is what a crash on some file systems leaves.
        raise (_damaged(file) if magic in (b"", _ZIP_MAGIC) else not_ours(file)) from error
    if broken is not None:
        raise _damaged(file)


def not_ours(file: Path) -> UserError:
    """The refusal of a file that `train.py` did not write."""
    return UserError(f"{file} is not a Trilemma checkpoint: name a .ckpt file that train.py wrote")


def _damaged(file: Path) -> UserError:
    return UserError(f"{file} is truncated or damaged: use the checkpoint before it, or copy it anew")
