"""How plots look and how they are written: PNG for documents, SVG files, and SVG within a page that follows its colours.

matplotlib is imported where something is drawn: nothing else in a run needs to wait for it. No window is ever opened:
a `Figure` is made and written by itself.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trilemma.atomic import atomic_write, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.axis import Axis as MplAxis
    from matplotlib.figure import Figure

INK, MUTED, LINE, PAGE = "#1b1f24", "#59636e", "#d5dae0", "#ffffff"
MARKERS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"), ("X", "✖"))
"""Of matplotlib, and as a character for a legend in text."""

_PNG_DPI = 160
_FONT = "DejaVu Sans"  # ships with matplotlib
_JOINS = "stroke-linejoin: round; stroke-linecap: butt"
_SERIES = ("#0067b1", "#c24e00", "#00795a", "#a03080", "#6b5b00", "#5a47b0", "#b3202c", "#4d5b66")
NUM_COLOURS = len(_SERIES)
# The colours of light pages, by their names in the stylesheet, where they have twins for dark ones.
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", PAGE: "page"} | {tone: f"c{i}" for i, tone in enumerate(_SERIES)}


def colour(index: int) -> str:
    """Colour of the series of this number; they come round again."""
    return _SERIES[index % NUM_COLOURS]


def marker(index: int) -> tuple[str, str]:
    """Marker of the series of this number: for matplotlib, and as a character."""
    return MARKERS[index % len(MARKERS)]


@contextmanager
def plotting() -> Iterator[None]:
    """Our settings of matplotlib, for drawing and for writing; those of the user are as before afterwards."""
    import matplotlib as mpl

    settings: dict[Any, Any] = {
        "font.family": [_FONT],
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.facecolor": PAGE,
        "figure.facecolor": PAGE,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.6,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "path.simplify_threshold": 0.5,  # of a point: a curve of 100,000 values is 50 kB
        "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
        "svg.hashsalt": "trilemma",  # names within the file are the same each time
    }
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        yield


def log_ticks(ticks: MplAxis, span: float) -> None:
    """Mark a logarithmic axis over this factor with plain numbers: powers of ten, and 2 and 5 times them where they fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    ticks.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 300 else (1.0,)))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ticks.set_minor_locator(NullLocator())
    ticks.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, stem: Path) -> Path:
    """Write `<stem>.png` and `<stem>.svg`, the same bytes each time.

    Returns:
        Path of the PNG.

    Raises:
        UserError: If the file system refuses.
    """
    path = stem.with_name(f"{stem.name}.png")
    with atomic_write(path) as handle:
        figure.savefig(handle, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    atomic_write_text(stem.with_name(f"{stem.name}.svg"), _svg(figure))
    return path


def inline_svg(figure: Figure, name: str, *, description: str) -> str:
    """Write the figure as an element of a page, with the page's colours.

    Args:
        figure: Drawn with `plotting`.
        name: Set before every identifier within, so that several figures share a page.
        description: What it shows, for those who do not see it.
    """
    text = _svg(figure)
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would reach beyond the figure
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', text)
    for value, variable in VARIABLES.items():
        text = text.replace(value, f"var(--{variable})")
    # The size in points gives way to that of the place it stands in.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    opening = f'<svg role="img" style="{_JOINS}" aria-label="{escape(description)}"'
    text = text.replace("<svg", opening, 1)
    return text.strip()


def _svg(figure: Figure) -> str:
    data = io.BytesIO()
    figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    # Sizes were measured with the widest of these, so that none runs into another.
    return data.getvalue().decode().replace(f"'{_FONT}'", f"'{_FONT}', system-ui, sans-serif")
