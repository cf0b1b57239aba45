"""What a batch holds."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """One training or validation batch; every data set fills what it has."""

    image: Tensor  # float [B, C, H, W] in [-1, 1]
    code: Tensor  # int64 [B, L], where the codec's codes are cached
    label: Tensor  # int64 [B]
    caption: list[str]
    index: Tensor  # int64 [B], position in the source split
