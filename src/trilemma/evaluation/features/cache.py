"""Features of real images, kept on disk: they are the slow part of an evaluation and never change."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trilemma.atomic import atomic_write
from trilemma.data.split import StoredImages
from trilemma.evaluation.features.base import Embedding, Extractor, Images, chunks

_log = logging.getLogger(__name__)
_CHUNK = 4096
_DIGEST_KEY = "sha256"


def cached_embed(extractor: Extractor, images: Images, folder: str | Path | None) -> Embedding:
    """Embed images, or read what was stored when the same extractor last saw the same images.

    The file is named after the content of both, so it cannot be stale. One that is damaged is computed anew, with a
    warning.

    Args:
        extractor: The extractor.
        images: uint8 [N, C, H, W].
        folder: Where the files are; None computes always and writes nothing.

    Raises:
        UserError: If the images do not fit the extractor, or the folder cannot be written.
    """
    if folder is None:
        return extractor.embed(images)
    path = Path(folder) / f"{extractor.name}-{images_sha256(images)[:16]}.safetensors"
    if path.exists():
        try:
            return _read(path)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            _log.warning("the feature cache %s is damaged (%s); computing it anew", path, error)
    embedding = extractor.embed(images)
    tensors = {name: part for name, part in embedding._asdict().items() if part is not None}
    with atomic_write(path) as handle:
        handle.write(save(tensors, {_DIGEST_KEY: _digest(embedding)}))
    return embedding


def images_sha256(images: Images) -> str:
    """Content hash, in hex, of images uint8 [N, C, H, W] and their shape."""
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    if isinstance(images, StoredImages):  # it knows the hash of its file
        digest.update(images.digest().encode())
        return digest.hexdigest()
    for chunk in chunks(images, _CHUNK):
        digest.update(chunk.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> Embedding:
    with safe_open(path, "pt") as reader:
        logits = reader.get_tensor("logits") if "logits" in reader.keys() else None  # noqa: SIM118 - no mapping
        embedding = Embedding(reader.get_tensor("features"), logits)
        digest = (reader.metadata() or {})[_DIGEST_KEY]
    if digest != _digest(embedding):
        raise ValueError("its content is not what was written")
    return embedding


def _digest(embedding: Embedding) -> str:
    digest = hashlib.sha256()
    for part in embedding:
        if part is None:
            continue
        digest.update(repr(tuple(part.shape)).encode())
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()
