"""Decode image files once into a uint8 array on disk."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trilemma.data.files import atomic_folder, locked
from trilemma.distributed import signals
from trilemma.errors import Stopped, UserError

_FORMAT = 1  # of the cache; raised when decoding changes
_AHEAD = 4  # images a thread, decoded before they are written
_ARRAY, _DIGEST = "images.npy", "sha256"
_TURNS = {  # by the value of EXIF's Orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoding:
    """How an image file is decoded to an array.

    Attributes:
        size: Height and width in pixels.
        channels: 1 (grey) or 3 (RGB).
        resize: "crop" cuts the largest central square and then resizes it; "stretch" resizes the whole image.
    """

    size: int
    channels: int
    resize: Literal["crop", "stretch"]


def check_decoding(size: int, channels: int, resize: Literal["crop", "stretch"]) -> Decoding:
    """Check the decoding options of a data set.

    Raises:
        UserError: If an argument is out of range.
    """
    if size < 1:
        raise UserError(f"data.size={size} must be at least 1")
    if channels not in (1, 3):
        raise UserError(f"data.channels={channels} must be 1 (grey) or 3 (RGB)")
    if resize not in ("crop", "stretch"):
        raise UserError(f"data.resize={resize} must be crop or stretch")
    return Decoding(size=size, channels=channels, resize=resize)


def decode(source: Path | IO[bytes], how: Decoding, name: str | None = None) -> npt.NDArray[np.uint8]:
    """Read one image file: rotated by its EXIF tag, transparency on white, resized bicubically with antialiasing.

    Args:
        source: The file, or its content.
        how: Into what.
        name: How errors call it; by default its path.

    Returns:
        uint8 [C, size, size].

    Raises:
        UserError: If the file is no image, is damaged, or has more than 8 bits a channel.
    """
    name = str(source) if name is None else name
    try:
        with Image.open(source) as file:
            file.load()
            image = _upright(file)
    except Exception as error:  # Pillow's readers raise many types for damaged files: OSError, SyntaxError, struct.error, TypeError, ...
        reason = re.sub(r" <_io\.BytesIO[^>]*>", "", str(error)) or type(error).__name__
        raise UserError(f"{name}: cannot be read as an image ({reason}); fix or remove it") from None
    if image.mode.startswith(("I", "F")):
        raise UserError(f"{name}: more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if how.channels == 1 else "RGB")
    if how.resize == "crop":
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        # Crop first: resize's own box lets pixels outside it bleed into the border.
        image = image.crop((left, top, left + side, top + side))
    if image.size != (how.size, how.size):
        image = image.resize((how.size, how.size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if how.channels == 1 else pixels.transpose(2, 0, 1)


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF tag says; metadata that cannot be read cost no picture."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # many types, as of one malformed tag among good ones
        turn = None
    return image.copy() if turn is None else image.transpose(turn)


def decoded(paths: Sequence[Path], how: Decoding, *, cache_dir: Path) -> tuple[npt.NDArray[np.uint8], str]:
    """Open all images as a memory-mapped array, decoded the first time and cached from then on.

    The cache is keyed by the files' paths, sizes and modification times and by `how`; processes that ask at the same
    time decode once.

    Args:
        paths: Image files, N.
        how: Size, channels and cropping.
        cache_dir: Where the cache lies.

    Returns:
        Read-only uint8 [N, C, size, size], and the sha256 of its content.

    Raises:
        UserError: If a file cannot be decoded, or the cache cannot be written.
    """
    folder = cache_dir / f"images-{_key(paths, how)}"
    if not folder.is_dir():
        with locked(cache_dir, folder.name):
            if not folder.is_dir():
                try:
                    with atomic_folder(folder) as partial:
                        _write(paths, how, partial)
                except OSError as error:
                    raise UserError(f"{folder}: cannot be written ({error.strerror}); set data.cache_dir=DIR") from None
    try:
        array = np.load(folder / _ARRAY, mmap_mode="r")
        digest = (folder / _DIGEST).read_text()
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder}: the cache is damaged ({error}); delete the folder") from None
    return array, digest


def _write(paths: Sequence[Path], how: Decoding, folder: Path) -> None:
    shape = (len(paths), how.channels, how.size, how.size)
    _check_space(math.prod(shape), folder)
    array = np.lib.format.open_memmap(folder / _ARRAY, mode="w+", dtype=np.uint8, shape=shape)
    content = hashlib.sha256()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    workers = min(8, os.cpu_count() or 1)
    # Pillow releases the interpreter lock while it decodes and resizes. It warns of huge and odd files, yet reads them;
    # warning filters are shared by all threads, so the filter is set here.
    with (
        warnings.catch_warnings(action="ignore"),
        ThreadPoolExecutor(workers) as pool,
        Progress(*columns, transient=True) as progress,
    ):
        try:
            task = progress.add_task("decoding images", total=len(paths))
            # A few at a time: images that are waited for would fill the memory.
            for start in range(0, len(paths), _AHEAD * workers):
                part = paths[start : start + _AHEAD * workers]
                for i, image in enumerate(pool.map(lambda path: decode(path, how), part), start=start):
                    signals.check()
                    array[i] = image
                    content.update(array[i].data)
                    progress.advance(task)
        except (UserError, Stopped):
            pool.shutdown(cancel_futures=True)
            raise
    array.flush()
    (folder / _DIGEST).write_text(content.hexdigest())


def _check_space(num_bytes: int, folder: Path) -> None:
    """See that decoded images fit the disk, before the first is decoded.

    Raises:
        UserError: If they do not.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise UserError(
            f"the decoded images take {num_bytes / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free in {folder.parent}: take a smaller "
            "data.size, or data.cache_dir on another disk"
        )


def _key(paths: Sequence[Path], how: Decoding) -> str:
    files = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path in paths for stat in (path.stat(),)]
    return hashlib.sha256(json.dumps([_FORMAT, asdict(how), files]).encode()).hexdigest()[:24]
