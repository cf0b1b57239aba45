"""Rows of results: a JSON object with the protocol that made it, and a table for people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trilemma.atomic import atomic_write_text
from trilemma.evaluation.cache import images_sha256
from trilemma.evaluation.evaluate import Evaluation
from trilemma.evaluation.extractor import Images
from trilemma.evaluation.protocol import Protocol

_SHARE = "class_share/"


def row(protocol: Protocol, evaluation: Evaluation, samples: Images) -> dict[str, Any]:
    """One row of results, in plain containers.

    Args:
        protocol: How it was made.
        evaluation: The numbers.
        samples: The images that were scored, uint8 [N, C, H, W]; the row holds their hash.
    """
    content: dict[str, Any] = {
        "protocol": protocol.to_dict(),
        "metrics": _plain(evaluation.metrics),
        "floor": _plain(evaluation.floor),
    }
    if evaluation.copycat:
        content["copycat"] = _plain(evaluation.copycat)
    return {**content, "samples_sha256": images_sha256(samples)}


def write_row(path: str | Path, content: dict[str, Any]) -> None:
    """Write a row as JSON, whole or not at all.

    Raises:
        UserError: If the file system refuses.
    """
    atomic_write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def table(protocol: Protocol, evaluation: Evaluation) -> Table:
    """The numbers beside their floor and what copies of training images score; a smoke run says so."""
    note = " (smoke: too few images to compare models by)" if protocol.tier == "smoke" else ""
    shown = Table(title=f"{protocol.model} on {protocol.data}, {protocol.num_images} images{note}")
    shown.add_column("metric")
    shown.add_column("model", justify="right")
    shown.add_column("held-out real images", justify="right")
    columns = [evaluation.metrics, evaluation.floor]
    if evaluation.copycat:
        shown.add_column("training images", justify="right")
        columns.append(evaluation.copycat)
    for name in evaluation.metrics:
        if not name.startswith(_SHARE):
            shown.add_row(name.replace("[", r"\["), *(_display(name, scores.get(name)) for scores in columns))
    if _range(evaluation.metrics):
        shown.add_row("class shares, least to most", *(_range(scores) for scores in columns))
    return shown


def print_table(protocol: Protocol, evaluation: Evaluation, console: Console | None = None) -> None:
    """Print `table`."""
    (console or Console()).print(table(protocol, evaluation))


def _display(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name in ("num_images", "modes_hit"):
        return f"{value:.0f}"
    if "FD[" in name:  # rounding leaves the distance of equal sets a little below zero
        value = max(value, 0.0)
    return f"{value:.4g}"


def _range(scores: dict[str, float]) -> str:
    shares = [value for name, value in scores.items() if name.startswith(_SHARE)]
    return f"{min(shares):.3f} to {max(shares):.3f}" if shares else ""


def _plain(scores: dict[str, float]) -> dict[str, float | str]:
    """Numbers that are not finite as strings that `float()` reads: JSON has no word for them."""
    return {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}
