"""The IDX format of MNIST and its relatives: http://yann.lecun.com/exdb/mnist."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trilemma.errors import UserError

_UINT8 = 0x08


def parse_idx(content: bytes, path: Path, *, ndim: int) -> npt.NDArray[np.uint8]:
    """Parse an IDX file: magic number (0, 0, type, ndim), sizes as big-endian uint32, then the values.

    Args:
        content: The file, decompressed.
        path: Its name, for messages.
        ndim: Expected number of dimensions: 3 for images, 1 for labels.

    Returns:
        Read-only uint8 array over `content`.

    Raises:
        UserError: If the magic number or the length is wrong.
    """
    magic = bytes((0, 0, _UINT8, ndim))
    if content[:4] != magic:
        raise UserError(
            f"{path}: no IDX file of {ndim}-dimensional uint8 (it begins with {content[:4].hex() or 'nothing'},"
            f" not {magic.hex()}); delete it and fetch it again"
        )
    offset = 4 + 4 * ndim
    if len(content) < offset:
        raise UserError(f"{path}: the header is truncated; delete it and fetch it again")
    shape = struct.unpack(f">{ndim}I", content[4:offset])
    if len(content) - offset != math.prod(shape):
        raise UserError(
            f"{path}: {len(content) - offset} bytes of data where the header says {math.prod(shape)};"
            " delete it and fetch it again"
        )
    return np.frombuffer(content, np.uint8, offset=offset).reshape(shape)
