"""What must be equal before two rows stand in one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from trilemma.errors import UserError
from trilemma.evaluation.report.row import Row
from trilemma.evaluation.report.tables.settings import settings_key

_EQUAL = {
    "data": "the data set",
    "data_fingerprint": "data with the fingerprint",
    "split": "the split",
    "extractor": "the extractor",
    "num_images": "a number of images of",
    "held_out": "the held-out split",
    "preprocessing": "the preprocessing",
    "metrics": "metrics of the version",
}


def comparable_among(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The largest group of rows that stand in one table (the first of equals), and a line for each row that is not of it."""
    groups = Counter(_key(row) for row in rows)
    if len(groups) < 2:
        return list(rows), []
    largest = groups.most_common(1)[0][0]
    model = next(row for row in rows if _key(row) == largest)
    lines = []
    for row in rows:
        if difference := next(_differences(model, row), None):
            _, words, one, other = difference
            lines.append(
                f"{row.name} was scored with {words} {other}, the {groups[largest]} rows of the report with {one}"
            )
    return [row for row in rows if _key(row) == largest], lines


def check_comparable(rows: Sequence[Row]) -> None:
    """See that the rows were scored against the same data, by the same extractor, with as many images, each once.

    Raises:
        UserError: If two of them were not, or are the same samples, or there are none.
    """
    if not rows:
        raise UserError("there are no rows to compare: name results that evaluate.py wrote")
    first = rows[0]
    for row in rows[1:]:
        for key, words, one, other in _differences(first, row):
            raise UserError(
                f"{first.name} was scored with {words} {one} and {row.name} with {other}, which are not comparable: "
                f"run evaluate.py again with the same {key}, or leave one of them out"
            )
    seen: dict[object, Row] = {}
    for row in rows:
        samples = row.content.get("samples_sha256")
        twin = seen.setdefault((samples, row.protocol.get("checkpoint"), settings_key(row)), row)
        if samples is not None and twin is not row:
            raise UserError(
                f"{twin.name} and {row.name} are the same samples, which no seed varies: leave out one of them"
            )


def _key(row: Row) -> tuple[str, ...]:
    return tuple(repr(row.protocol.get(key)) for key in _EQUAL)


def _differences(first: Row, other: Row) -> Iterator[tuple[str, str, object, object]]:
    """What differs, in words, and its value in either row."""
    for key, words in _EQUAL.items():
        one, two = first.protocol.get(key), other.protocol.get(key)
        if one != two:
            yield key, words, one, two
