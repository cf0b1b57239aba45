"""One evaluation as one wandb run, beside the training it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from trilemma.runs.shown import shown
from trilemma.runs.wandb_mode import Mode
from trilemma.runs.wandb_profile import Profile
from trilemma.runs.wandb_run import RunPlan, as_image


def log_evaluation(
    row: Mapping[str, Any],
    pictures: Mapping[str, Image.Image | Path],
    *,
    save_dir: Path,
    group: str,
    run_id: str,
    project: str = "trilemma",
    tags: Sequence[str] = (),
    mode: Mode = "auto",
    profile: Profile = "private",
    init_timeout: float = 15.0,
    finish_timeout: float = 300.0,
) -> None:
    """Write a row of results as a wandb run with `job_type="evaluate"`.

    Its summary has `eval/<name>` for each metric, `eval/floor/<name>` and `eval/copycat/<name>` for what real images and
    copies of training images score, `eval/ledger/...` for what a sample costs, and `eval/num_steps` and
    `eval/guidance_scale`, so that settings can be plotted against each other; its config has the protocol.

    Args:
        row: As `evaluation.rows.row` makes it: `protocol`, `metrics`, and optionally `floor`, `copycat` and `ledger`.
        pictures: PIL pictures or files, shown as `eval/<name>`.
        save_dir: Folder whose `wandb` sub-folder holds the run's files.
        group: Runs shown together; the experiment.
        run_id: Identity; the same id again goes on in the same run.
        project: The wandb project.
        tags: Labels to filter by.
        mode: Where the run goes.
        profile: What is recorded besides.
        init_timeout: Seconds that the server may take at the start.
        finish_timeout: Seconds that it may take at the end.

    Raises:
        UserError: If WANDB_MODE is no mode, or `save_dir` cannot be written.
    """
    plan = RunPlan(
        project=project,
        run_id=run_id,
        group=group,
        save_dir=save_dir,
        job_type="evaluate",
        tags=tuple(tags),
        mode=mode,
        profile=profile,
        init_timeout=init_timeout,
        finish_timeout=finish_timeout,
    )
    protocol = {key: value for key, value in row["protocol"].items() if key != "machine"}
    _log(plan, protocol, {**evaluation_metrics(row), **_images(pictures)})


def log_report(
    pictures: Mapping[str, Image.Image | Path],
    *,
    save_dir: Path,
    run_id: str,
    project: str = "trilemma",
    tags: Sequence[str] = (),
    mode: Mode = "auto",
    profile: Profile = "private",
    init_timeout: float = 15.0,
    finish_timeout: float = 300.0,
) -> None:
    """Write the pictures of a report as a wandb run with `job_type="report"`; arguments as in `log_evaluation`.

    Raises:
        UserError: If WANDB_MODE is no mode, or `save_dir` cannot be written.
    """
    plan = RunPlan(
        project=project,
        run_id=run_id,
        group="report",
        save_dir=save_dir,
        job_type="report",
        tags=tuple(tags),
        mode=mode,
        profile=profile,
        init_timeout=init_timeout,
        finish_timeout=finish_timeout,
    )
    _log(plan, {}, _images(pictures))


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `UserError` for an option of `log_evaluation` that wandb would refuse, before there is anything to log."""
    RunPlan(run_id="check", group="check", save_dir=Path(), job_type="evaluate", **options)


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
