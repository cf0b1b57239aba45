"""The codes of a data set, computed once and cached."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData, SplitName
from trilemma.data.codes import StoredCodes
from trilemma.datasets.tokens import TokenData
from trilemma.distributed.job import this_job
from trilemma.errors import UserError
from trilemma.first_stage.shards import CodeMaker


def codec_hash(codec: Codec) -> str:
    """Hash a codec's weights and nothing else, sixteen hexadecimal digits.

    The scaling of its codes, which is fitted to the cache, does not count.
    """
    digest = hashlib.sha256()
    weights = {name: tensor for name, tensor in codec.state_dict().items() if name not in ("shift", "scale")}
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def codes_dir(codec: Codec, data: ImageData, cache_dir: Path) -> Path:
    """Name the folder of the codes of a data set after the hashes of both, so that its content is never stale."""
    return cache_dir / "codes" / f"{data.fingerprint[:16]}-{codec_hash(codec)}{'-flip' if data.flip else ''}"


def cached_codes(
    codec: Codec, data: ImageData, cache_dir: Path, *, node: dict[str, Any] | None = None
) -> dict[SplitName, StoredCodes]:
    """Load what the codec caches of the training and validation splits, memory-mapped; compute it now where it is missing.

    Rank 0 computes them while the other processes of a job wait; `python -m trilemma.tokenize` divides the work among many. Two jobs that
    do it at once write the same files, and none is harmed. `data=tokens` brings its codes along.

    Args:
        codec: The codec, in evaluation mode.
        data: The images.
        cache_dir: Codes are kept below it, by the hashes of codec and data.
        node: What builds `data`, in plain containers; it is written beside the codes.

    Returns:
        By split, tokens [N, L], or what continuous codes are made of, float32 [N, ...], see `Codec.cache`; of training images that are
        mirrored [2, N, ...].

    Raises:
        UserError: If the folder cannot be written, or `data` holds codes by another codec.
    """
    if isinstance(data, TokenData):
        ours, theirs = codec_hash(codec), data.codec["hash"]
        if ours != theirs:
            raise UserError(
                f"data.root={data.root} holds codes by another codec (hash {theirs}, and this one's is {ours}): give "
                "codec.checkpoint=PATH of the one that made them, or tokenize the images with this one"
            )
        return data.codes
    maker = CodeMaker(codec, codec_hash(codec), data, codes_dir(codec, data, cache_dir), node=node)
    splits: tuple[SplitName, ...] = ("train", "val")
    made = maker.make(splits, quiet=not this_job().is_first)
    return {name: made.codes(name) for name in splits}
