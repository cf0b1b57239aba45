"""The front of points that no other point beats in both coordinates."""

from __future__ import annotations

from collections.abc import Sequence

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
