from pathlib import Path

import numpy as np
import pytest

from trilemma.datasets.idx import parse_idx
from trilemma.errors import UserError

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("values", [VALUES, np.array([3, 1], dtype=np.uint8)])
def test_round_trip(idx_writer, tmp_path, values):
    content = idx_writer(tmp_path / "x", values)
    assert np.array_equal(parse_idx(content, tmp_path / "x", ndim=values.ndim), values)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-1], "23 bytes of data where the header says 24"),
        (lambda content: content + b"x", "25 bytes of data"),
        (lambda content: content[:9], "header is truncated"),
        (lambda content: b"", "begins with nothing"),
        (lambda content: b"\x00\x00\x08\x01" + content[4:], "begins with 00000801, not 00000803"),
        (lambda content: b"<html>" + content, "begins with 3c68746d"),
    ],
)
def test_a_damaged_file_is_named(idx_writer, tmp_path, damage, reason):
    content = damage(idx_writer(tmp_path / "x", VALUES))
    with pytest.raises(UserError, match=rf"^some/file: .*{reason}.*; delete it"):
        parse_idx(content, Path("some/file"), ndim=3)
