"""Rows of results: JSON objects, each with the protocol that made it.

A row has the keys `format`, `protocol`, `metrics`, `floor` (the held-out baseline), `copycat` (the training-set
baseline) and `samples_sha256`, and where they were measured `ledger`, `likelihood` and `two_stage`. It is written part by
part, so what was measured before a crash is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from trilemma.atomic import atomic_write_text
from trilemma.errors import UserError
from trilemma.evaluation.protocol import Protocol
from trilemma.evaluation.samples import Evaluation

FORMAT = 2
Row = dict[str, Any]


def new_row(protocol: Protocol, evaluation: Evaluation, samples_sha256: str) -> Row:
    """Build a row of results, in plain containers.

    Args:
        protocol: Its protocol.
        evaluation: Its metrics and baselines.
        samples_sha256: Content hash of the images that were scored.
    """
    content: Row = {
        "format": FORMAT,
        "protocol": protocol.to_dict(),
        "metrics": plain_numbers(evaluation.metrics),
        "floor": plain_numbers(evaluation.held_out_baseline),
    }
    if evaluation.training_set_baseline:
        content["copycat"] = plain_numbers(evaluation.training_set_baseline)
    return {**content, "samples_sha256": samples_sha256}


def write_row(path: str | Path, content: Row) -> None:
    """Write a row as JSON, whole or not at all.

    Raises:
        UserError: If the file system refuses.
    """
    atomic_write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_row(path: str | Path) -> Row:
    """Read what `write_row` wrote.

    Raises:
        UserError: If the file is missing, no row, or of another format.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the row {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is not a row of results (no JSON): remove it, or name another") from None
    if not isinstance(content, dict) or not {"protocol", "metrics", "floor"} <= content.keys():
        raise UserError(f"{path} is not a row of results that evaluate.py wrote: remove it, or name another")
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} is a row of format {content.get('format', 1)}, not {FORMAT}: measure its checkpoint again"
        )
    return content


def kept_row(path: Path, protocol: Protocol) -> Row:
    """What an earlier evaluation by the same protocol left at `path`; an empty row where there is none."""
    try:
        content = read_row(path)
    except UserError:
        return {}  # `move_aside` says so, where it is in the way
    return content if protocol.describes(content["protocol"]) else {}


def move_aside(path: Path) -> None:
    """Rename what is in the way of a new row, with the pictures and samples beside it, after its content.

    Nothing that was measured is overwritten, and no samples are left to be taken for those of the new row.
    """
    if not path.exists():
        return
    try:
        read_row(path)
        reason = f"{path.name} is of another protocol"
    except UserError as error:
        reason = str(error)
    aside = f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    for ending in (".png", "-neighbours.png", ".npz", ".json"):  # the row last: until then it is found here again
        companion = path.with_name(f"{path.stem}{ending}")
        if companion.exists():
            companion.rename(path.with_name(f"{aside}{ending}"))
    print(f"warning: {reason}; it is kept as {aside}.json, and measured again")


def plain_numbers(scores: dict[str, float]) -> dict[str, float | str]:
    """Numbers that are not finite as strings that `float()` reads: JSON has no word for them."""
    return {name: value if math.isfinite(value) else str(value) for name, value in scores.items()}
