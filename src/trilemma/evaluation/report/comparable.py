"""What must be equal before two rows stand in one table."""

from __future__ import annotations

from collections.abc import Sequence

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


def check_comparable(rows: Sequence[Row]) -> None:
    """See that the rows were scored against the same data, by the same extractor, with as many images, each once.

    Raises:
        UserError: If two of them were not, or are the same samples, or there are none.
    """
    if not rows:
        raise UserError("there are no rows to compare: name results that evaluate.py wrote")
    first = rows[0]
    for row in rows[1:]:
        for key, words in _EQUAL.items():
            one, other = first.protocol.get(key), row.protocol.get(key)
            if one != other:
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
