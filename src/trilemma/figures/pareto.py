"""The front of points that no other point beats in both coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]


def pareto_front(
    points: Sequence[Point], *, larger_x_is_better: bool = False, larger_y_is_better: bool = False
) -> list[int]:
    """Points that no other point dominates: at least as good in both coordinates and better in one.

    Args:
        points: Coordinates; a point with one that is not a number is on no front.
        larger_x_is_better: Whether more is better along x.
        larger_y_is_better: Whether more is better along y.

    Returns:
        Indices of the front by rising x, equal points in their order.
    """
    sign_x, sign_y = -1 if larger_x_is_better else 1, -1 if larger_y_is_better else 1
    costs = [(sign_x * x, sign_y * y, i) for i, (x, y) in enumerate(points) if x == x and y == y]
    front: list[int] = []
    least = at = float("inf")
    for x, y, i in sorted(costs):  # from the best x on, only a new best y is not dominated
        if not front or y < least or (x, y) == (at, least):
            front.append(i)
            least, at = y, x
    return front[::-1] if larger_x_is_better else front


def staircase(
    points: Sequence[Point], *, larger_x_is_better: bool = False, larger_y_is_better: bool = False
) -> list[Point]:
    """Corners of the line between what the front reaches and what it does not.

    A setting between two points of a front is not promised to exist: between them stands what both reach, which is the
    worse of each coordinate.

    Args:
        points: As in `pareto_front`.
        larger_x_is_better: As there.
        larger_y_is_better: As there.

    Returns:
        The corners by rising x, the points of the front among them.
    """
    front = pareto_front(points, larger_x_is_better=larger_x_is_better, larger_y_is_better=larger_y_is_better)
    chosen = [points[i] for i in front]
    worse_x = min if larger_x_is_better else max
    worse_y = min if larger_y_is_better else max
    corners = chosen[:1]
    for before, after in pairwise(chosen):
        corners += [(worse_x(before[0], after[0]), worse_y(before[1], after[1])), after]
    return corners
