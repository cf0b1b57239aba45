"""Run an oracle (`evaluate.py experiment=oracle/...`), print every check, and fail if one fails."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from trilemma.atomic import atomic_write_text
from trilemma.config.build import build
from trilemma.errors import UserError
from trilemma.evaluation.oracles.base import Check, Oracle
from trilemma.evaluation.protocol import Machine
from trilemma.runs.directory import prepare

FAILED = 1  # exit status; 2 is for input that the user can fix


def run_oracle(cfg: DictConfig) -> None:
    """Run the oracle that `cfg.oracle` names, print its table and write its row.

    Raises:
        UserError: If the node names something else, or cannot be built.
        SystemExit: With status 1 if a check fails.
    """
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    node = OmegaConf.to_container(cfg.oracle, resolve=True) if isinstance(cfg.oracle, DictConfig) else cfg.oracle
    oracle = build(node, where="oracle")
    if not isinstance(oracle, Oracle):
        raise UserError("oracle names no oracle: choose one of experiment=oracle/...")
    name = _name(oracle)
    folder = Path(cfg.output_dir or "outputs/oracle")
    prepare(folder)
    checks = oracle.run(cfg.seed)
    protocol = {"oracle": node, "seed": cfg.seed, "machine": dataclasses.asdict(Machine.here("cpu"))}
    path = folder / f"{name}.json"
    atomic_write_text(path, json.dumps(row(protocol, checks), indent=2, allow_nan=False) + "\n")
    Console().print(table(f"{name}, seed {cfg.seed}", checks))
    failed = sum(not check.passed for check in checks)
    print(f"{len(checks) - failed} of {len(checks)} checks hold; row: {path}")
    if failed:
        raise SystemExit(FAILED)


def row(protocol: dict[str, Any], checks: list[Check]) -> dict[str, Any]:
    """Build the row of an oracle in plain containers; a number that is not finite is a string that `float()` reads."""
    return {
        "protocol": protocol,
        "passed": all(check.passed for check in checks),
        "checks": [
            {key: _plain(value) for key, value in dataclasses.asdict(check).items()} | {"passed": check.passed}
            for check in checks
        ],
    }


def table(title: str, checks: list[Check]) -> Table:
    """Tabulate every check: the known value, the found one, and whether the difference is allowed."""
    shown = Table(title=title)
    shown.add_column("what")
    for column in ("expected", "found", "allowed"):
        shown.add_column(column, justify="right")
    shown.add_column("verdict")
    for check in checks:
        numbers = (f"{check.expected:.6g}", f"{check.found:.6g}", f"{check.tolerance:.2g}")
        shown.add_row(check.name, *numbers, "holds" if check.passed else "[bold red]FAILS[/]")
    return shown


def _name(oracle: Oracle) -> str:
    """Choose the experiment's name where one was chosen, as in `gaussian_metrics`; else that of the class."""
    choice = HydraConfig.get().runtime.choices.get("experiment") if HydraConfig.initialized() else None
    return str(choice).rpartition("/")[2] if choice else type(oracle).__name__


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
