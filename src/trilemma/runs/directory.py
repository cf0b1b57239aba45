"""The run directory."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trilemma.atomic import atomic_write_text
from trilemma.errors import UserError

_PACKAGES = (
    "trilemma",
    "torch",
    "lightning",
    "hydra-core",
    "omegaconf",
    "torchmetrics",
    "vector-quantize-pytorch",
    "numpy",
    "wandb",
)


def prepare(folder: Path) -> None:
    """Create a folder and check that it is writable.

    Raises:
        UserError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; choose another place with paths.output_dir=... (or output_dir=...)"
        ) from None


def set_aside(run_dir: Path) -> None:
    """Move the files of an earlier run of this name to a sub-folder: nothing is lost, and nothing of it is resumed.

    The lock, and files of a batch script under `slurm`, stay.
    """
    stay = (".lock", "slurm")
    old = [path for path in run_dir.iterdir() if path.name not in stay and not path.name.startswith("superseded-")]
    if old:
        name = f"superseded-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        taken = len(list(run_dir.glob(f"{name}*")))  # another one set aside in the same second
        folder = run_dir / (f"{name}-{taken + 1}" if taken else name)
        folder.mkdir()
        for path in old:
            path.rename(folder / path.name)


def write_versions(run_dir: Path) -> None:
    """Write `versions.txt`: Python and the packages that decide the numbers."""
    lines = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} absent")
    atomic_write_text(run_dir / "versions.txt", "\n".join(lines) + "\n")
