"""Pages that are one file: markup that escapes what it is given, pictures within, no script and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

from PIL import Image

from trilemma.figures.stylesheet import STYLESHEET

# Whatever slips into a page, the browser loads nothing and runs nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_VOID = {"br", "hr", "img", "meta", "wbr"}


class Html(str):
    """Markup that stands as it is; any other string is text and is escaped where it is put in."""

    __slots__ = ()


def element(tag: str, /, *children: str, **attributes: str | int | bool | None) -> Html:
    """One element.

    Args:
        tag: Its name.
        *children: Markup (`Html`), or text, which is escaped.
        **attributes: Values are escaped; True is an attribute without a value, None and False leave it out. `class_`
            and `data_value` stand for `class` and `data-value`.

    Raises:
        ValueError: If an element that cannot have children is given some.
    """
    if tag in _VOID and children:
        raise ValueError(f"<{tag}> has no children")
    opening = tag
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        opening += f" {name}" if value is True else f' {name}="{escape(str(value))}"'
    if tag in _VOID:
        return Html(f"<{opening}>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def join(parts: Iterable[str]) -> Html:
    """Markup and text, one after the other; text is escaped."""
    return Html("".join(part if isinstance(part, Html) else escape(part) for part in parts))


def breakable(text: str) -> Html:
    """A name that may be broken after its slashes and underscores."""
    return Html(escape(text).replace("/", "/<wbr>").replace("_", "_<wbr>"))


def page(title: str, body: Iterable[str]) -> str:
    """A whole document, light or dark as the reader's system is.

    Args:
        title: Shown by the browser.
        body: Markup and text.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", **{"http-equiv": "Content-Security-Policy"}, content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLESHEET)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', element('main', *body)), lang='en')}\n"


def definition_rows(pairs: Iterable[tuple[str, str]], **attributes: str | None) -> Html:
    """A table of names and values."""
    rows = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in pairs]
    return element("table", element("tbody", *rows), class_="pairs", **attributes)


def picture(path: Path, *, alt: str, max_width: int = 1000) -> Html:
    """A picture file as an image within the page.

    Args:
        path: Any format that Pillow reads.
        alt: What it shows, for those who do not see it.
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
    return element("img", src=uri, alt=alt, width=image.width, height=image.height)
