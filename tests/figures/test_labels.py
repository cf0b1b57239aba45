from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from trilemma.figures.labels import around, place_labels

WINDOW = Bbox.from_extents(0, 0, 200, 200)
places = st.tuples(st.floats(0, 200), st.floats(0, 200))
sizes = st.tuples(st.floats(5, 40), st.floats(5, 12)) | st.just((0.0, 0.0))


@given(st.lists(st.tuples(places, sizes), max_size=15))
def test_no_label_covers_a_point_or_another_label_or_leaves_the_window(labels):
    anchors, extents = [place for place, _ in labels], [size for _, size in labels]
    boxes = place_labels(anchors, extents, inside=WINDOW)
    placed = [box for box in boxes if box is not None]
    assert all(0 <= edge <= 200 for box in placed for edge in box.extents)
    assert not any(a.fully_overlaps(b) for a, b in combinations(placed, 2))
    assert not any(box.fully_overlaps(around(x, y, 7.9, 7.9)) for box in placed for x, y in anchors)
    assert all(box is None for box, (width, _) in zip(boxes, extents, strict=True) if width == 0)


def test_a_lone_label_stands_above_its_point():
    (box,) = place_labels([(100, 100)], [(20, 10)], inside=WINDOW)
    assert tuple(box.extents) == (90, 106, 110, 116)


def test_lines_are_avoided_where_there_is_room():
    line = Path([(0, 110), (200, 110)])
    (box,) = place_labels([(100, 100)], [(20, 10)], inside=WINDOW, crossed=[line])
    assert not line.intersects_bbox(box, filled=False)
