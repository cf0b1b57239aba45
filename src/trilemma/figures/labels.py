"""Where the labels of points go, so that none covers a point or another label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = ((0, 1), (1, 1), (-1, 1), (1, 0), (-1, 0), (0, -1), (1, -1), (-1, -1))
_DISTANCES = (6.0, 12.0)
_POINT_SIZE = 8.0


@dataclass(frozen=True)
class Box:
    """A rectangle in points (1/72 inch), y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether they share an area."""
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )

    def within(self, other: Box) -> bool:
        """Whether it lies inside."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.bottom >= other.bottom
            and self.top <= other.top
        )


def around(x: float, y: float, width: float, height: float) -> Box:
    """The box of this size about a centre."""
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    inside: Box,
    crossed: Sequence[tuple[float, float]] = (),
) -> list[Box | None]:
    """A place beside its point for each label, the first labels first.

    Args:
        anchors: Points, in points (1/72 inch). Every one is kept clear, whether it has a label or not.
        sizes: Width and height of each label; (0, 0) where a point has none.
        inside: No label leaves it.
        crossed: Places along lines, which a label avoids if it can.

    Returns:
        The boxes; None for a label that has no room, and for a point without one.
    """
    points = [around(x, y, _POINT_SIZE, _POINT_SIZE) for x, y in anchors]
    lines = [around(x, y, 2, 2) for x, y in crossed]
    placed: list[Box | None] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        taken = points + [box for box in placed if box is not None]
        best: tuple[int, Box] | None = None
        for distance in _DISTANCES if width else ():
            for right, up in _DIRECTIONS:
                step = distance if not (right and up) else distance * 0.7
                box = around(x + right * (step + width / 2), y + up * (step + height / 2), width, height)
                if not box.within(inside) or any(box.overlaps(other) for other in taken):
                    continue
                cost = sum(box.overlaps(line) for line in lines)
                if best is None or cost < best[0]:
                    best = cost, box
        placed.append(None if best is None else best[1])
    return placed
