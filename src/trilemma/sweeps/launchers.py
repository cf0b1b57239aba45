"""Hydra launchers that an extra installs."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from omegaconf import DictConfig

from trilemma.errors import UserError

_EXTRAS = {"joblib": "sweep", "submitit": "slurm"}


def accept_defaults() -> None:
    """Let our defaults of a launcher bear its name: Hydra checks them by the launcher's schema, with a deprecation warning."""
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")


@contextmanager
def explained(config: DictConfig) -> Iterator[None]:
    """Name the missing extra where Hydra does not know the launcher's class.

    Args:
        config: Of Hydra.

    Raises:
        UserError: If the launcher is not installed.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        target = str(config.hydra.launcher.get("_target_"))
        extra = next((extra for name, extra in _EXTRAS.items() if name in target), None)
        if extra is None or "plugin" not in str(error).lower():
            raise
        chosen = config.hydra.runtime.choices["hydra/launcher"]
        raise UserError(f"hydra/launcher={chosen} is not installed: pip install -e '.[{extra}]'") from None


def is_started_by_another() -> bool:
    """Check whether a launcher started this process to run points one after the other."""
    return multiprocessing.parent_process() is not None
