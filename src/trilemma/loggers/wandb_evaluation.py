"""One evaluation as one wandb run, beside the training it measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # wandb takes a second to import
    from trilemma.loggers.wandb import WandbLogger


def log_evaluation(logger: WandbLogger, row: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write a row of results as a wandb run, and close it.

    Its summary has `eval/<name>` for each metric, `eval/floor/<name>` and `eval/copycat/<name>` for what real images and
    copies of training images score, `eval/ledger/...` for what a sample costs, and `eval/num_steps` and
    `eval/guidance_scale`, so that settings can be plotted against each other; its config has the protocol.

    Args:
        logger: Of the run; the same id again goes on in the same run.
        row: As `evaluation.rows.new_row` makes it: `protocol`, `metrics`, and optionally `floor`, `copycat` and `ledger`; empty
            for a run of pictures alone.
        pictures: Files, shown as `eval/<name>` where they exist.
    """
    import wandb

    logger.log_hyperparams({key: value for key, value in row.get("protocol", {}).items() if key != "machine"})
    found = {f"eval/{name}": wandb.Image(str(path)) for name, path in pictures.items() if path.is_file()}
    logger.log_metrics({**evaluation_metrics(row), **found})
    logger.finalize("success")


def evaluation_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by the names they have in wandb.

    Args:
        row: See `log_evaluation`. Strings are numbers that JSON has no word for, as "inf".
    """
    numbers = _numbers(row.get("metrics") or {}, "eval/")
    for part in ("floor", "copycat", "ledger"):
        numbers |= _numbers(row.get(part) or {}, f"eval/{part}/")
    protocol = row.get("protocol") or {}
    settings = {
        "num_steps": (protocol.get("sampler") or {}).get("num_steps"),
        "guidance_scale": (protocol.get("guidance") or {}).get("scale"),
    }
    return numbers | _numbers(settings, "eval/")


def _numbers(node: Any, prefix: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in node.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) or value in ("nan", "inf", "-inf"):
            found[f"{prefix}{name}"] = float(value)
    return found
