"""Compute the codes of a data set shard by shard, in any number of processes.

A shard consists of the same images in the same batches in any process, so codes do not depend on the number of processes. The folder
begins with its manifest, meta.json, which says what the codes are; when all shards are there, their table is added to it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.atomic import atomic_write
from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData, SplitName
from trilemma.data.codes import FORMAT, META, CodeFolder, open_array, read_folder, read_meta, sha256_of
from trilemma.data.split import Split, StoredImages
from trilemma.data.workers import Workers, num_bytes
from trilemma.distributed import signals
from trilemma.distributed.job import Job
from trilemma.errors import UserError
from trilemma.first_stage.encoder import Encoder
from trilemma.first_stage.shares import Shard, cut, make_share, written_folder

BATCH_SIZE, SHARD_SIZE = 256, 4096
_NOT_OF_THE_IMAGES = ("batch_size", "seed", "max_val_images", "num_workers")


class CodeMaker:
    """Computes the codes of a data set in a folder, or what is missing of them.

    Args:
        codec: In evaluation mode; on the device that is to do the work.
        codec_hash: What the folder's content is known by.
        data: The images.
        folder: Where the codes go.
        node: What builds `data`, in plain containers, for later reading the images of the codes.
        batch_size: Images that are encoded together; None takes what the folder was begun with.
        shard_size: Images in a shard; None likewise.

    Raises:
        UserError: If the folder holds codes by another codec or of other data, or was begun with other sizes.
    """

    def __init__(
        self,
        codec: Codec,
        codec_hash: str,
        data: ImageData,
        folder: Path,
        *,
        node: dict[str, Any] | None = None,
        batch_size: int | None = None,
        shard_size: int | None = None,
    ) -> None:
        for name, size in (("batch_size", batch_size), ("shard_size", shard_size)):
            if size is not None and size < 1:
                raise UserError(f"{name}={size} must be at least 1")
        self._codec = codec
        self._encoder = Encoder(codec)
        self._row_shape = self._encoder.row_shape(data.image_shape)
        self._data = data
        self._folder = folder
        self._node = None if node is None else {k: v for k, v in node.items() if k not in _NOT_OF_THE_IMAGES}
        begun = read_meta(folder)
        usual = begun or {"batch_size": BATCH_SIZE, "shard_size": SHARD_SIZE}
        self._batch_size, self._shard_size = batch_size or usual["batch_size"], shard_size or usual["shard_size"]
        self._meta = self._description(codec_hash)
        if begun is not None:
            _check_same(folder, begun, self._meta)
        elif any(folder.glob("*.npy")):
            raise UserError(
                f"{folder} holds codes that nothing says the codec of: take another output_dir, or delete it"
            )
        self._workers: dict[str, Workers] = {}

    def make(self, splits: Sequence[SplitName], job: Job | None = None, *, quiet: bool = False) -> CodeFolder:
        """Compute what is missing.

        Args:
            splits: Which.
            job: All its processes call this at once: each makes its share, and the first one completes the manifest. None: this
                process makes all.
            quiet: Show no progress.

        Raises:
            UserError: If the folder cannot be written.
            TrainingError: If another process is gone.
        """
        job = job or Job()
        try:
            make_share(job, lambda: self._missing(splits), self._write, what="encoding", quiet=quiet)
            if job.world_size == 1:
                return self._complete(splits)
            return job.rank_zero_first("manifest", lambda: self._complete(splits))
        finally:
            for workers in self._workers.values():
                workers.close()

    def discard_damaged(self) -> list[Path]:
        """Compare all files of a complete folder with the manifest and delete those that differ, so that they are made again."""
        complete = read_folder(self._folder)
        damaged = [] if complete is None else list(complete.damaged())
        for path in damaged:
            path.unlink(missing_ok=True)
        if damaged:
            self._write_meta({})
        return damaged

    def _missing(self, splits: Sequence[SplitName]) -> list[Shard]:
        missing = [shard for name in splits for shard in self._shards(name) if not self._stands(shard)]
        begun = read_meta(self._folder)
        tables = {} if begun is None else begun["splits"]
        whole = {name: tables[name] for name in tables if name not in {shard.split for shard in missing}}
        if begun is None or whole != tables:
            with written_folder(self._folder):
                self._write_meta(whole)
        return missing

    def _complete(self, splits: Sequence[SplitName]) -> CodeFolder:
        """Add the table of the splits to the manifest, where it lacks them."""
        meta = read_meta(self._folder)
        tables = {} if meta is None else meta["splits"]
        if left := [name for name in splits if name not in tables]:
            with written_folder(self._folder):
                meta = self._write_meta({**tables, **{name: self._table(name) for name in left}})
        return CodeFolder(self._folder, meta or {})

    def _write_meta(self, tables: dict[str, Any]) -> dict[str, Any]:
        meta = {**self._meta, "splits": {name: tables[name] for name in ("train", "val", "test") if name in tables}}
        _write_bytes(self._folder / META, (json.dumps(meta, indent=1, ensure_ascii=False) + "\n").encode())
        return meta

    def _shards(self, name: SplitName) -> list[Shard]:
        return cut(name, len(self._data.split(name)), self._shard_size, ".npy")

    def _stands(self, shard: Shard) -> bool:
        """Check whether a shard is there, by its size."""
        return open_array(self._folder / shard.file, self._shape(shard), self._encoder.dtype) is not None

    def _shape(self, shard: Shard) -> tuple[int, ...]:
        versions = (2,) if self._flips(shard.split) else ()
        return (len(shard), *versions, *self._row_shape)

    def _flips(self, split: SplitName) -> bool:
        return self._data.flip and split == "train"

    def _write(self, shard: Shard) -> None:
        parts = []
        for images in self._images(shard):
            signals.check()
            parts.append(self._encoder(images, flip=self._flips(shard.split)))
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(parts), allow_pickle=False)
        _write_bytes(self._folder / shard.file, buffer.getvalue())

    def _images(self, shard: Shard) -> Iterator[Tensor]:
        """Yield batches of a shard's images, read ahead where they are not in memory."""
        split, size = self._data.split(shard.split), self._batch_size
        starts = range(shard.start, shard.stop, size)

        def read(start: int) -> dict[str, Tensor]:
            return {"image": split.images[start : min(start + size, shard_stop(start))]}

        def shard_stop(start: int) -> int:
            return min(len(split), (start // self._shard_size + 1) * self._shard_size)

        if self._data.num_workers and isinstance(split.images, StoredImages):
            if shard.split not in self._workers:
                batch = ((size, *split.images.shape[1:]), torch.uint8)
                self._workers[shard.split] = Workers(read, self._data.num_workers, num_bytes(batch))
            for made in self._workers[shard.split].made(starts):
                yield made["image"]
        else:
            for start in starts:
                yield read(start)["image"]

    def _table(self, name: SplitName) -> dict[str, Any]:
        """Describe the files of a split, and write those that hold no codes."""
        shards = [
            {"file": shard.file, "size": len(shard), "sha256": sha256_of(self._folder / shard.file)}
            for shard in self._shards(name)
        ]
        return {"flip": self._flips(name), "shards": shards, **self._write_known(name, self._data.split(name))}

    def _write_known(self, name: str, split: Split) -> dict[str, Any]:
        """Write labels, captions and indices of the images."""
        entries = {}
        for part, values in (("index", split.index), ("labels", split.labels)):
            if values is not None:
                buffer = io.BytesIO()
                np.save(buffer, values.cpu().numpy(), allow_pickle=False)
                file = f"{name}-{part}.npy"
                entries[part] = {"file": file, "sha256": _write_bytes(self._folder / file, buffer.getvalue())}
        if split.captions is not None:
            file = f"{name}-captions.json"
            content = json.dumps(split.captions, ensure_ascii=False).encode()
            entries["captions"] = {"file": file, "sha256": _write_bytes(self._folder / file, content)}
        return entries

    def _description(self, codec_hash: str) -> dict[str, Any]:
        """Describe the codes, without their table."""
        codec, data = self._codec, self._data
        return {
            "format": FORMAT,
            "codec": {
                "hash": codec_hash,
                "name": type(codec).__name__,
                "num_classes": codec.num_classes,
                "code_shape": list(codec.code_shape),
            },
            "data": {
                "name": data.name,
                "fingerprint": data.fingerprint,
                "image_shape": list(data.image_shape),
                "label_names": data.label_names,
                "extractor": data.extractor_name,
                "channels_are_images": data.channels_are_images,
                "node": self._node,
            },
            "dtype": self._encoder.dtype,
            "row_shape": list(self._row_shape),
            "flip": self._data.flip,
            "batch_size": self._batch_size,
            "shard_size": self._shard_size,
        }


def _check_same(folder: Path, begun: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to continue in a folder that was begun otherwise, and say what differs.

    Raises:
        UserError: If anything does that decides the content of a shard.
    """
    codec, data = (
        (begun["codec"]["hash"], wanted["codec"]["hash"]),
        (begun["data"]["fingerprint"], wanted["data"]["fingerprint"]),
    )
    if codec[0] != codec[1]:
        what = f"codes by another codec (hash {codec[0]}, and this one's is {codec[1]})"
    elif data[0] != data[1]:
        what = f"codes of other data (fingerprint {data[0][:16]}, and this one's is {data[1][:16]})"
    elif begun["flip"] != wanted["flip"]:
        what = f"codes made with data.flip={str(begun['flip']).lower()}"
    elif any(begun[key] != wanted[key] for key in ("batch_size", "shard_size")):
        raise UserError(
            f"{folder} was begun with batch_size={begun['batch_size']} shard_size={begun['shard_size']}: leave both out to go on with "
            "it, or take another output_dir"
        )
    else:
        return
    raise UserError(f"{folder} holds {what}: take another output_dir, or delete the folder")


def _write_bytes(path: Path, content: bytes) -> str:
    """Write a file, whole or not at all; returns its SHA-256."""
    with atomic_write(path) as handle:
        handle.write(content)
    return hashlib.sha256(content).hexdigest()
