"""Data sets for trainings of two batches: real ones where there are any, and pictures made on the spot."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trilemma.datasets.mnist import MNIST, FashionMNIST

_NUM_CLASSES, _NUM_EACH, _SIDE = 3, 24, 48


def write_pictures(folder: Path) -> Path:
    """Random pictures of three sizes of grain, by class: data=image_folder."""
    rng = np.random.default_rng(0)
    for label in range(_NUM_CLASSES):
        (folder / f"class{label}").mkdir(parents=True)
        side = _SIDE >> label
        for number in range(_NUM_EACH):
            grains = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            grains.resize((_SIDE, _SIDE), Image.Resampling.NEAREST).save(folder / f"class{label}" / f"{number:02}.png")
    return folder


def write_shard(pictures: Path, folder: Path) -> Path:
    """The same pictures in one tar: data=webdataset."""
    folder.mkdir()
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        for number, path in enumerate(sorted(pictures.rglob("*.png"))):
            label = folder / "label"
            label.write_text(path.parent.name.removeprefix("class"))
            tar.add(path, f"{number:05}.png")
            tar.add(label, f"{number:05}.cls")
    return folder


def gather_real(data_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for paths.data_dir: all that lies in `data_dir`, CIFAR-10 unpacked where it is packed, and Fashion-MNIST.

    Where there is no Fashion-MNIST, MNIST's files, which have the same format, pass for it.
    """
    folder.mkdir()
    for path in data_dir.iterdir():
        if path.name == "cifar10" and (path / "unpack.py").is_file():
            subprocess.run(
                [sys.executable, str(path / "unpack.py"), str(folder / "cifar10")], check=True, capture_output=True
            )
        else:
            (folder / path.name).symlink_to(path.absolute())
    if not FashionMNIST.debian.is_dir() and not (folder / FashionMNIST.folders[0]).exists():
        (folder / FashionMNIST.folders[0]).symlink_to((data_dir / "mnist").absolute())
        monkeypatch.setattr(FashionMNIST, "checksums", MNIST.checksums)
    return folder
