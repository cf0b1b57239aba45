"""Compute the codes of a data set shard by shard, in any number of processes.

A shard consists of the same images in the same batches in any process, so codes do not depend on the number of processes. Its
SHA-256 lies beside it until the folder is complete and has a table.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trilemma.atomic import atomic_write
from trilemma.codecs.base import Codec
from trilemma.data.base import ImageData, SplitName
from trilemma.data.codes import FORMAT, META, CodeFolder, open_array, read_folder, sha256_of
from trilemma.data.files import try_lock
from trilemma.data.split import Split, StoredImages
from trilemma.data.workers import Workers, num_bytes
from trilemma.distributed import signals
from trilemma.errors import UserError
from trilemma.first_stage.encoder import Encoder
from trilemma.first_stage.recipe import RECORD, Recipe, check_same, read_record, recipe_in
from trilemma.first_stage.shares import POLL_SECONDS, Report, Shard, cut, make_missing

BATCH_SIZE, SHARD_SIZE = 256, 4096
_LOCK = ".meta.lock"
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
        rank: Which share to begin with.
        world_size: Number of shares.

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
        rank: int = 0,
        world_size: int = 1,
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
        self._rank, self._world_size = rank, world_size
        begun = recipe_in(folder)
        wanted = Recipe(
            codec=codec_hash,
            data=data.fingerprint,
            flip=data.flip,
            batch_size=batch_size or (begun.batch_size if begun else BATCH_SIZE),
            shard_size=shard_size or (begun.shard_size if begun else SHARD_SIZE),
        )
        if begun is not None:
            check_same(folder, begun, wanted)
        self._recipe = wanted
        self._workers: dict[str, Workers] = {}

    def make(self, splits: Sequence[SplitName], *, quiet: bool = False) -> CodeFolder:
        """Compute what is missing; returns when all shards are there, whichever process wrote them.

        Args:
            splits: Which.
            quiet: Show no progress.

        Raises:
            UserError: If the folder cannot be written.
        """
        shards = [shard for name in splits for shard in self._shards(name)]
        try:
            while True:
                with Report("encoding", sum(map(len, shards)), quiet=quiet) as report:
                    make_missing(
                        self._folder,
                        shards,
                        stands=self._stands,
                        write=self._write,
                        report=report,
                        rank=self._rank,
                        world_size=self._world_size,
                    )
                complete = read_folder(self._folder)
                if complete is None or report.made or not set(splits) <= set(complete.splits):
                    complete = self._finish(splits)
                if set(splits) <= set(complete.splits):
                    return complete
        finally:
            for workers in self._workers.values():
                workers.close()

    def discard_damaged(self) -> list[Path]:
        """Verify all shards and delete the damaged ones, so that they are computed again."""
        complete = read_folder(self._folder)
        if complete is not None:
            damaged = list(complete.damaged())
            if damaged:
                self._reopen(complete)
        else:
            damaged = [
                path
                for sidecar in self._folder.glob("*.npy" + RECORD)
                if (path := sidecar.with_suffix("")).is_file()
                and sha256_of(path) != json.loads(sidecar.read_text()).get("sha256")
            ]
        for path in damaged:
            path.unlink(missing_ok=True)
            path.with_name(path.name + RECORD).unlink(missing_ok=True)
        return damaged

    def _shards(self, name: SplitName) -> list[Shard]:
        return cut(name, len(self._data.split(name)), self._recipe.shard_size, ".npy")

    def _stands(self, shard: Shard) -> bool:
        """Check whether a shard is there, by its size."""
        path = self._folder / shard.file
        record = read_record(path)
        if record is None:  # records are removed last, so the folder is complete
            complete = read_folder(self._folder)
            if complete is None or shard.split not in complete.splits:
                return False
        elif record["recipe"] != asdict(self._recipe):
            raise UserError(f"{path} was just made by another codec, or of other data: take another output_dir")
        return open_array(path, self._shape(shard), self._encoder.dtype) is not None

    def _shape(self, shard: Shard) -> tuple[int, ...]:
        versions = (2,) if self._flips(shard.split) else ()
        return (len(shard), *versions, *self._row_shape)

    def _flips(self, split: SplitName) -> bool:
        return self._recipe.flip and split == "train"

    def _write(self, shard: Shard) -> None:
        parts = []
        for images in self._images(shard):
            signals.check()
            parts.append(self._encoder(images, flip=self._flips(shard.split)))
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate(parts), allow_pickle=False)
        digest = _write_bytes(self._folder / shard.file, buffer.getvalue())
        record = {"sha256": digest, "recipe": asdict(self._recipe)}
        _write_bytes(self._folder / (shard.file + RECORD), _as_json(record))

    def _images(self, shard: Shard) -> Iterator[Tensor]:
        """Yield batches of a shard's images, read ahead where they are not in memory."""
        split, size = self._data.split(shard.split), self._recipe.batch_size
        starts = range(shard.start, shard.stop, size)

        def read(start: int) -> dict[str, Tensor]:
            return {"image": split.images[start : min(start + size, shard_stop(start))]}

        def shard_stop(start: int) -> int:
            return min(len(split), (start // self._recipe.shard_size + 1) * self._recipe.shard_size)

        if self._data.num_workers and isinstance(split.images, StoredImages):
            if shard.split not in self._workers:
                batch = ((size, *split.images.shape[1:]), torch.uint8)
                self._workers[shard.split] = Workers(read, self._data.num_workers, num_bytes(batch))
            for made in self._workers[shard.split].made(starts):
                yield made["image"]
        else:
            for start in starts:
                yield read(start)["image"]

    def _finish(self, splits: Sequence[SplitName]) -> CodeFolder:
        """Update the table, and remove the files that only the computation needed."""
        while True:
            with try_lock(self._folder / _LOCK) as taken:
                if taken is not False:
                    return self._write_table(splits, alone=bool(taken))
            time.sleep(POLL_SECONDS)

    def _write_table(self, splits: Sequence[SplitName], *, alone: bool) -> CodeFolder:
        standing = read_folder(self._folder)
        entries = dict(standing.meta["splits"]) if standing else {}
        for name in splits:
            entries[name] = self._entry(name, entries.get(name))
        if standing is None or entries != standing.meta["splits"]:
            ordered = {name: entries[name] for name in ("train", "val", "test") if name in entries}
            _write_bytes(self._folder / META, _as_json({**self._description(), "splits": ordered}))
        if alone:
            for name in entries:
                for pattern in (f"{name}-*.npy{RECORD}", f".{name}-*.npy.lock", f".tmp-{name}-*"):
                    for path in self._folder.glob(pattern):
                        path.unlink(missing_ok=True)
            for path in (*self._folder.glob(f".tmp-{META}*"), self._folder / _LOCK):
                path.unlink(missing_ok=True)
        complete = read_folder(self._folder)
        assert complete is not None
        return complete

    def _entry(self, name: SplitName, standing: dict[str, Any] | None) -> dict[str, Any]:
        """Build a split's part of the table; shards without a record are as the existing table has them."""
        known = {} if standing is None else {shard["file"]: shard["sha256"] for shard in standing["shards"]}
        shards = []
        for shard in self._shards(name):
            record = read_record(self._folder / shard.file)
            digest = known[shard.file] if record is None else record["sha256"]
            shards.append({"file": shard.file, "size": len(shard), "sha256": digest})
        if standing is not None:
            return {**standing, "shards": shards}
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

    def _description(self) -> dict[str, Any]:
        codec, data = self._codec, self._data
        return {
            "format": FORMAT,
            "codec": {
                "hash": self._recipe.codec,
                "name": type(codec).__name__,
                "num_classes": codec.num_classes,
                "code_shape": list(codec.code_shape),
            },
            "data": {
                "name": data.name,
                "fingerprint": self._recipe.data,
                "image_shape": list(data.image_shape),
                "label_names": data.label_names,
                "extractor": data.extractor_name,
                "channels_are_images": data.channels_are_images,
                "node": self._node,
            },
            "dtype": self._encoder.dtype,
            "row_shape": list(self._row_shape),
            "flip": self._recipe.flip,
            "batch_size": self._recipe.batch_size,
            "shard_size": self._recipe.shard_size,
        }

    def _reopen(self, complete: CodeFolder) -> None:
        """Reset a finished folder to the state in which its shards exist and its table is not written yet."""
        for entry in complete.meta["splits"].values():
            for shard in entry["shards"]:
                record = {"sha256": shard["sha256"], "recipe": asdict(self._recipe)}
                _write_bytes(self._folder / (shard["file"] + RECORD), _as_json(record))
        (self._folder / META).unlink()


def _write_bytes(path: Path, content: bytes) -> str:
    """Write a file, whole or not at all; returns its SHA-256."""
    with atomic_write(path) as handle:
        handle.write(content)
    return hashlib.sha256(content).hexdigest()


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
