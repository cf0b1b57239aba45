"""The command `python -m trilemma.shards`: pack a data set into tar shards, each process its share."""

from __future__ import annotations

import hashlib
import io
import json
import os
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from trilemma.atomic import atomic_write, atomic_write_text
from trilemma.config.build import build
from trilemma.config.check import check_config
from trilemma.config.nodes import plain
from trilemma.config.schema import PATHS
from trilemma.data.base import ImageData, SplitName
from trilemma.datasets.image_folder import ImageFolder
from trilemma.datasets.tokens import TokenData
from trilemma.distributed import signals
from trilemma.distributed.job import this_job
from trilemma.errors import UserError
from trilemma.figures.images import to_pil
from trilemma.first_stage.shares import Shard, cut, make_share, written_folder
from trilemma.quiet import quieten
from trilemma.runs.directory import prepare

SCHEMA: dict[str, Any] = {"data": None, "paths": PATHS, "shard_size": int, "seed": int, "output_dir": str}
_SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
_RECORD, _NAMES = "shards.json", "labels.txt"


class _Source(ABC):
    """A source of samples.

    Attributes:
        sizes: Images of each split.
        label_names: Names of class 0, 1, ..., or None.
        digest: Hash of the content.
    """

    sizes: dict[SplitName, int]
    label_names: list[str] | None
    digest: str

    @abstractmethod
    def sample(self, split: SplitName, position: int) -> dict[str, bytes]:
        """Read the parts of a sample by their extension."""


class _Files(_Source):
    """The files of an image folder, unchanged."""

    def __init__(self, data: ImageFolder) -> None:
        self._listing = listing = data.listing()
        self._rows = data.rows(listing)
        self.sizes = {name: len(rows) for name, rows in self._rows.items()}
        self.label_names = listing.label_names
        files = [(os.path.relpath(path, data.root), path.stat().st_size) for path in listing.paths]
        described = [files, listing.labels, listing.captions, {k: rows.tolist() for k, rows in self._rows.items()}]
        self.digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def sample(self, split: SplitName, position: int) -> dict[str, bytes]:
        listing, row = self._listing, int(self._rows[split][position])
        path = listing.paths[row]
        try:
            parts = {path.suffix[1:].lower(): path.read_bytes()}
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); fix or remove it") from None
        if listing.labels is not None:
            parts["cls"] = str(listing.labels[row]).encode()
        if listing.captions is not None:
            parts["txt"] = listing.captions[row].encode()
        return parts


class _Images(_Source):
    """The images of any data set as PNG."""

    def __init__(self, data: ImageData) -> None:
        data.setup()
        self._data = data
        self.sizes = {name: len(data.split(name)) for name in _SPLITS}
        self.label_names = data.label_names
        self.digest = data.fingerprint

    def sample(self, split: SplitName, position: int) -> dict[str, bytes]:
        found = self._data.split(split)
        buffer = io.BytesIO()
        to_pil(found.images[position : position + 1])[0].save(buffer, format="PNG")
        parts = {"png": buffer.getvalue()}
        if found.labels is not None:
            parts["cls"] = str(int(found.labels[position])).encode()
        if found.captions is not None:
            parts["txt"] = found.captions[position].encode()
        return parts


def pack(cfg: DictConfig) -> None:
    """Write the shards of all splits, or those that are missing, and print how to train from them.

    Raises:
        UserError: For anything that the user can fix.
    """
    job = this_job()
    job.rank_zero_first("checked", lambda: _check(cfg))
    folder = Path(cfg.output_dir)
    source = job.rank_zero_first("opened", lambda: _open(cfg))
    shards = [s for name in _SPLITS for s in cut(name, source.sizes[name], cfg.shard_size, ".tar")]
    job.broadcast("begun", lambda: _begin(folder, source, cfg.shard_size))
    with written_folder(folder):
        make_share(
            job,
            lambda: [shard for shard in shards if not (folder / shard.file).is_file()],
            lambda shard: _write(folder, shard, source),
            what="packing",
        )
    if job.is_first:
        num_bytes = sum((folder / shard.file).stat().st_size for shard in shards)
        print(f"{sum(map(len, shards))} images in {len(shards)} shards, {num_bytes / 1e6:.1f} MB: {folder}")
        print(f"train from them with  {_how_to_train(folder, source, shards)}", flush=True)


def _check(cfg: DictConfig) -> None:
    if OmegaConf.select(cfg, "data._target_") is None:
        raise UserError("nothing to pack: name a data set, for example data=image_folder data.root=DIR")
    check_config(cfg, SCHEMA)
    quieten()


def _open(cfg: DictConfig) -> _Source:
    data = build(plain(cfg, "data"), where="data")
    if not isinstance(data, ImageData):
        raise UserError(f"data._target_={cfg.data._target_} is not a data set")
    if isinstance(data, TokenData):
        raise UserError("data=tokens holds codes and no images: name the images' own data set")
    _tar_writer()
    return _Files(data) if isinstance(data, ImageFolder) else _Images(data)


def _begin(folder: Path, source: _Source, shard_size: int) -> None:
    """Write the description of the folder's content, or check that it is the same."""
    prepare(folder)
    record = {"data": source.digest, "shard_size": shard_size, "images": source.sizes}
    path = folder / _RECORD
    if path.exists():
        try:
            begun = json.loads(path.read_text())
        except (OSError, ValueError):
            begun = None
        if begun != record:
            raise UserError(f"{folder} was begun with other images or another shard_size: take another output_dir")
        return
    if any(folder.glob("*.tar")):
        raise UserError(f"{folder} holds shards that this command did not write: take another output_dir")
    if source.label_names is not None:
        atomic_write_text(folder / _NAMES, "".join(f"{name}\n" for name in source.label_names))
    atomic_write_text(path, json.dumps(record, indent=1) + "\n")


def _write(folder: Path, shard: Shard, source: _Source) -> None:
    # With a fixed time, the same images give the same bytes.
    with atomic_write(folder / shard.file) as handle, _tar_writer()(handle, encoder=False, mtime=0) as writer:
        for position in range(shard.start, shard.stop):
            signals.check()
            writer.write({"__key__": f"{shard.split}-{position:08d}", **source.sample(shard.split, position)})


def _tar_writer() -> Any:
    try:
        return import_module("webdataset.writer").TarWriter
    except ImportError:
        raise UserError("tar shards need the package webdataset: pip install -e '.[webdataset]'") from None


def _how_to_train(folder: Path, source: _Source, shards: list[Shard]) -> str:
    words = ["data=webdataset", f"data.root={folder}"]
    for name in _SPLITS:
        files = [shard.file for shard in shards if shard.split == name]
        key = "shards" if name == "train" else f"{name}_shards"
        # Braces are quoted twice: for the shell and for Hydra.
        several = f"\"data.{key}='{name}-{{00000..{len(files) - 1:05d}}}.tar'\""
        words.append(several if len(files) > 1 else f"data.{key}={files[0]}")
    if source.label_names is not None:
        words.append(f"data.label_names={_NAMES}")
    return " ".join(words)
