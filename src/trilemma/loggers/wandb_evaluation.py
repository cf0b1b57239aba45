"""One evaluation as one wandb run, beside the training it measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from trilemma.loggers.settings import shown
from trilemma.loggers.wandb_run import RunPlan, as_image


def log_evaluation(plan: RunPlan, row: Mapping[str, Any], pictures: Mapping[str, Image.Image | Path]) -> None:
    """Write a row of results as a wandb run.

    Its summary has `eval/<name>` for each metric, `eval/floor/<name>` and `eval/copycat/<name>` for what real images and
    copies of training images score, `eval/ledger/...` for what a sample costs, and `eval/num_steps` and
    `eval/guidance_scale`, so that settings can be plotted against each other; its config has the protocol.

    Args:
        plan: The run; the same id again goes on in the same run.
        row: As `evaluation.rows.new_row` makes it: `protocol`, `metrics`, and optionally `floor`, `copycat` and `ledger`.
        pictures: PIL pictures or files, shown as `eval/<name>`.

    Raises:
        UserError: If WANDB_MODE is no mode, or the plan's folder cannot be written.
    """
    protocol = {key: value for key, value in row["protocol"].items() if key != "machine"}
    _log(plan, protocol, {**evaluation_metrics(row), **_images(pictures)})


def log_report(plan: RunPlan, pictures: Mapping[str, Image.Image | Path]) -> None:
    """Write the pictures of a report as a wandb run; arguments and errors as in `log_evaluation`."""
    _log(plan, {}, _images(pictures))


def _log(plan: RunPlan, config: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    run, _ = plan.open(plan.decide())
    run.config.update(shown(dict(config)), allow_val_change=True)
    run.log(dict(content))
    plan.close(run, exit_code=0)


def _images(pictures: Mapping[str, Image.Image | Path]) -> dict[str, Any]:
    return {f"eval/{name}": as_image(picture) for name, picture in pictures.items()}


def evaluation_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by the names they have in wandb.

    Args:
        row: See `log_evaluation`. Strings are numbers that JSON has no word for, as "inf".
    """
    numbers = _numbers(row["metrics"], "eval/")
    for part in ("floor", "copycat", "ledger"):
        numbers |= _numbers(row.get(part) or {}, f"eval/{part}/")
    settings = {
        "num_steps": (row["protocol"].get("sampler") or {}).get("num_steps"),
        "guidance_scale": (row["protocol"].get("guidance") or {}).get("scale"),
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
