import gzip
import hashlib

import numpy as np
import pytest

from trilemma.datasets.mnist import MNIST, FashionMNIST
from trilemma.errors import UserError


@pytest.fixture
def small(idx_writer, tmp_path, monkeypatch):
    """A folder with an MNIST of 40 + 10 images whose checksums are the official ones for the test."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    checksums = {}
    for prefix, size in (("train", 40), ("t10k", 10)):
        arrays = {"images-idx3": rng.integers(256, size=(size, 28, 28)), "labels-idx1": np.arange(size) % 10}
        for suffix, values in arrays.items():
            content = idx_writer(folder / f"{prefix}-{suffix}-ubyte", values)
            checksums[f"{prefix}-{suffix}-ubyte"] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(MNIST, "checksums", checksums)
    return folder


def compress(source, target):
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        (target / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def mnist(root, **options):
    return MNIST(**{"root": root, "val_size": 10, "batch_size": 5, "download": False} | options)


@pytest.mark.parametrize("layout", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_files_are_found_in_the_usual_places(small, tmp_path, layout, compressed):
    root = tmp_path / "root"
    (root / layout).mkdir(parents=True)
    for path in small.iterdir():
        if compressed:
            (root / layout / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        else:
            (root / layout / path.name).write_bytes(path.read_bytes())
    assert mnist(root).fingerprint == mnist(small).fingerprint


def test_splits_part_the_training_images_and_follow_the_split_seed(small):
    data = mnist(small, split_seed=1)
    train, val, test = (data.split(name) for name in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (30, 10, 10)
    assert sorted([*train.index.tolist(), *val.index.tolist()]) == list(range(40))
    assert np.bincount(val.labels).tolist() == [1] * 10
    assert test.index.tolist() == list(range(10))
    raw = np.frombuffer((small / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(40, 1, 28, 28)
    assert np.array_equal(train.images.numpy(), raw[train.index])
    assert train.labels.tolist() == (train.index % 10).tolist()
    assert mnist(small, split_seed=1, seed=9).fingerprint == data.fingerprint
    assert mnist(small, split_seed=2).fingerprint != data.fingerprint


def test_missing_files_are_downloaded_once(small, mirror, tmp_path, monkeypatch):
    folder, url = mirror
    compress(small, folder)
    monkeypatch.setattr(MNIST, "mirrors", (f"{url}nowhere/", url))
    root = tmp_path / "root"
    assert mnist(root, download=True).fingerprint == mnist(small).fingerprint
    assert mnist(root).fingerprint == mnist(small).fingerprint
    assert len(list((root / "mnist").glob("*ubyte.gz"))) == 4


def test_a_damaged_download_is_refused(small, mirror, tmp_path, monkeypatch):
    folder, url = mirror
    compress(small, folder)
    truncated = (folder / "train-labels-idx1-ubyte.gz").read_bytes()[:-9]
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(truncated)
    monkeypatch.setattr(MNIST, "mirrors", (url,))
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte.gz .*truncated"):
        mnist(tmp_path, download=True).setup()
    assert not (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").exists()


def test_missing_files_without_download_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: no mnist files.*data\.root.*data\.download=true"):
        mnist(tmp_path).setup()


def test_one_changed_pixel_is_seen(small):
    path = small / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: not the official mnist file .*; delete it") as caught:
        mnist(small).setup()
    assert "\n" not in str(caught.value)


def test_another_data_set_is_not_taken_for_this_one(small):
    with pytest.raises(UserError, match="not the official fashion_mnist file"):
        FashionMNIST(root=small, val_size=10, batch_size=5).setup()


@pytest.mark.parametrize("val_size", [0, 60_000])
def test_val_size_is_checked(val_size, tmp_path):
    with pytest.raises(UserError, match=rf"data\.val_size={val_size}"):
        mnist(tmp_path, val_size=val_size)


def test_the_official_mnist(data_dir):
    data = MNIST(root=data_dir, download=False)
    assert (data.image_shape, data.num_labels, data.label_names) == ((1, 28, 28), 10, list("0123456789"))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [55_000, 5_000, 10_000]
    whole = np.bincount(data.split("train").labels) + np.bincount(data.split("val").labels)
    assert np.all(np.abs(np.bincount(data.split("val").labels) - whole / 12) <= 2)
    # The mean of the training images, as the literature gives it: 0.1307.
    pixels = sum(int(data.split(name).images.sum()) for name in ("train", "val"))
    assert round(pixels / 60_000 / 784 / 255, 4) == 0.1307
    declared = MNIST.declared({"val_size": 5000})
    assert (declared.image_shape, declared.num_labels) == (data.image_shape, data.num_labels)
    assert declared.num_train_images == len(data.split("train"))


@pytest.mark.skipif(not FashionMNIST.debian.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_fashion_mnist_is_found_where_debian_puts_it(tmp_path):
    data = FashionMNIST(root=tmp_path, download=False)
    assert np.bincount(data.split("test").labels).tolist() == [1000] * 10
    assert data.label_names[9] == "ankle boot"
    declared = FashionMNIST.declared({"val_size": 5000})
    assert (declared.image_shape, declared.num_labels) == (data.image_shape, data.num_labels)
    assert declared.num_train_images == len(data.split("train"))
