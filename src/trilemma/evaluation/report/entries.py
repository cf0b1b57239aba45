"""Rows sorted by the model they measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from trilemma.evaluation.report.row import Entry, Row


def entries_of(rows: Sequence[Row]) -> list[Entry]:
    """One entry a checkpoint, in the order of their first rows.

    It is called by its experiment; where several checkpoints share one, by the run as well, and by the content of the
    checkpoint where a run has several.
    """
    by_checkpoint: dict[object, list[Row]] = {}
    for row in rows:
        by_checkpoint.setdefault(row.protocol.get("checkpoint"), []).append(row)
    found = [tuple(members) for members in by_checkpoint.values()]
    names = [_model(members[0]) for members in found]
    for detail in (_run, _checkpoint):
        shared = Counter(names)
        names = [
            f"{name}, {detail(members[0])}" if shared[name] > 1 else name
            for name, members in zip(names, found, strict=True)
        ]
    return [Entry(name, members) for name, members in zip(names, found, strict=True)]


def _model(row: Row) -> str:
    return str(row.protocol.get("model")).partition(" (")[0]


def _run(row: Row) -> str:
    return f"run {row.protocol.get('run')}"


def _checkpoint(row: Row) -> str:
    return f"checkpoint {str(row.protocol.get('checkpoint'))[:8]}"
