"""The run directory."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
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


def write_origin(run_dir: Path) -> None:
    """Write what the numbers come from; both files stay on this machine.

    `versions.txt`: the commit of this project, Python and the packages that decide the numbers. `commands.txt`: a line for each command
    that began or continued the run, to be pasted into a shell.
    """
    with (run_dir / "commands.txt").open("a", encoding="utf-8") as file:
        file.write(f"{shlex.join(['python', *sys.argv])}  # {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    lines = [f"git {_commit()}", f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} absent")
    atomic_write_text(run_dir / "versions.txt", "\n".join(lines) + "\n")


def _commit() -> str:
    """Name the commit of the checkout that this package lies in, and say whether files of it were changed since."""
    git = ["git", "-C", str(Path(__file__).parents[3])]
    try:
        top = subprocess.run(
            [*git, "rev-parse", "--show-cdup", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):  # installed without its repository, or no git here
        return "absent"
    above, _, commit = top.stdout.rpartition("\n")[0].partition("\n")
    if above:  # a repository of another project, which this package was installed into
        return "absent"
    return commit + (" with changes" if changed.stdout else "")
