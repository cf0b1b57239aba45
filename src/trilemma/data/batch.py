"""The content of a batch."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """One training or validation batch; every data set fills the keys that it has."""

    image: Tensor  # float [B, C, H, W] in [-1, 1]
    code: Tensor  # where a codec's codes are cached: tokens int64 [B, L], or float [B, ...] for `Codec.from_cache`
    label: Tensor  # int64 [B]
    caption: list[str]
    index: Tensor  # int64 [B], position in the source split
    row: Tensor  # int64 [B], position in the order of validation or test
