"""Pages that are one file: templates that escape what they are given, pictures within, no network and no script but our own."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from trilemma.evaluation.report.row import Row


def picture(path: Path, max_width: int) -> dict[str, str | int]:
    """Read a picture file as `src`, `width` and `height` of an image within a page.

    Args:
        path: Any format that Pillow reads.
        max_width: Wider pictures are shrunk to so many pixels.

    Raises:
        OSError: If the file is missing or no picture.
    """
    with Image.open(path) as opened:
        image = opened.convert("L" if opened.mode == "L" else "RGB")
    if image.width > max_width:
        image = image.resize((max_width, max(1, round(image.height * max_width / image.width))), Image.Resampling.BOX)
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"src": uri, "width": image.width, "height": image.height}


def sections(row: Row) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the parts of a row as names and values; first, without a title, what stands in none."""
    parts = {name: value for name, value in row.content.items() if isinstance(value, (Mapping, list))}
    yield "", [("row", row.name), *((name, str(v)) for name, v in row.content.items() if name not in parts)]
    for name, content in parts.items():
        if content:
            yield name, list(_flat(content))


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of nested containers, `a.b[0]`."""
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, (list, tuple)) and content:
        for i, value in enumerate(content):
            yield from _flat(value, f"{prefix}[{i}]")
    else:
        yield prefix, "none" if content is None or content in ({}, [], ()) else str(content)


ENVIRONMENT = Environment(
    loader=PackageLoader("trilemma", "evaluation/report/templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
ENVIRONMENT.globals["picture"] = picture
_script = (Path(__file__).parent / "templates" / "table.js").read_text(encoding="utf-8")
ENVIRONMENT.globals["table_script"] = {
    "text": _script,
    "hash": f"sha256-{base64.b64encode(hashlib.sha256(_script.encode()).digest()).decode()}",
}
ENVIRONMENT.filters |= {"repr": repr, "sections": sections}
ENVIRONMENT.tests["finite"] = math.isfinite
