"""Where the labels of points go, so that none covers a point or another label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

_DIRECTIONS = ((0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (1, -1), (-1, -1))
_DISTANCES = (6.0, 12.0)
_POINT_SIZE = 8.0


def around(x: float, y: float, width: float, height: float) -> Bbox:
    """The box of this size about a centre."""
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    inside: Bbox,
    crossed: Sequence[Path] = (),
) -> list[Bbox | None]:
    """A place beside its point for each label, the first labels first.

    Args:
        anchors: Points, in points (1/72 inch). Every one is kept clear, whether it has a label or not.
        sizes: Width and height of each label; (0, 0) where a point has none.
        inside: No label leaves it.
        crossed: Lines, which a label avoids if it can.

    Returns:
        The boxes; None for a label that has no room, and for a point without one.
    """
    points = [around(x, y, _POINT_SIZE, _POINT_SIZE) for x, y in anchors]
    placed: list[Bbox | None] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        taken = points + [box for box in placed if box is not None]
        found: list[tuple[int, Bbox]] = []
        for distance in _DISTANCES if width else ():
            for right, up in _DIRECTIONS:
                step = distance if not (right and up) else distance * 0.7
                box = around(x + right * (step + width / 2), y + up * (step + height / 2), width, height)
                within = inside.containsx(box.x0) and inside.containsx(box.x1) and inside.containsy(box.y0)
                if within and inside.containsy(box.y1) and not any(box.fully_overlaps(other) for other in taken):
                    found.append((sum(path.intersects_bbox(box, filled=False) for path in crossed), box))
        placed.append(min(found, key=lambda pair: pair[0])[1] if found else None)
    return placed
