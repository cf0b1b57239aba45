import io
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from trilemma.datasets import cifar10, cifar10_files
from trilemma.datasets.cifar10 import CIFAR10, caption
from trilemma.datasets.cifar10_files import Archive, digest, md5
from trilemma.errors import UserError

BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
PYTHON, BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, as the official files have them."""

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(content)

    dispatch = pickle._Pickler.dispatch | {bytes: save_bytes}


def python2(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def python3(content):
    return pickle.dumps(content, protocol=2)


def write_python(rows, folder, write=python2):
    folder.mkdir(parents=True)
    for name, part in zip(BATCHES, rows, strict=True):
        names = [f"tabby_cat_s_{i:06d}.png".encode() for i in range(len(part))]
        batch = {b"data": part[:, 1:].copy(), b"labels": part[:, 0].tolist(), b"filenames": names}
        (folder / name).write_bytes(write(batch))
    (folder / "batches.meta").write_bytes(b"not read")


def write_binary(rows, folder):
    folder.mkdir(parents=True)
    for name, part in zip(BATCHES, rows, strict=True):
        part.tofile(folder / f"{name}.bin")


@pytest.fixture
def rows(monkeypatch):
    """Batches of a CIFAR-10 of 50 + 10 images whose digests are the official ones for the test."""
    parts = list(np.random.default_rng(0).integers(256, size=(6, 10, 3073), dtype=np.uint8))
    for part in parts:
        part[:, 0] = np.arange(10)
    digests = {"train": digest(np.concatenate(parts[:5])), "test": digest(parts[5])}
    monkeypatch.setattr(cifar10_files, "_DIGESTS", digests)
    return parts


def data_set(root, **options):
    return CIFAR10(**{"root": root, "val_size": 10, "batch_size": 5, "download": False} | options)


def test_digest_ignores_the_order_and_nothing_else():
    rows = np.random.default_rng(0).integers(256, size=(20, 3073), dtype=np.uint8)
    assert digest(rows[::-1].copy()) == digest(rows)
    for i, j in ((0, 0), (19, 3072), (7, 100)):
        changed = rows.copy()
        changed[i, j] ^= 1
        assert digest(changed) != digest(rows)
    duplicated = rows.copy()
    duplicated[3] = duplicated[4]
    assert digest(duplicated) != digest(rows)
    assert digest(rows[:-1]) != digest(rows)


@pytest.mark.parametrize("write", [python2, python3])
@pytest.mark.parametrize("place", [".", PYTHON, f"cifar10/{PYTHON}", "cifar10"])
def test_python_batches_are_found_and_read(rows, tmp_path, write, place):
    root = tmp_path / "root"
    write_python(rows, root / place, write)
    data = data_set(root, captions=True)
    test = data.split("test")
    assert np.array_equal(test.images.numpy(), rows[5][:, 1:].reshape(10, 3, 32, 32))
    assert test.labels.tolist() == list(range(10))
    assert test.captions == ["a photo of a tabby cat"] * 10
    train = data.split("train")
    whole = np.concatenate(rows[:5])
    assert np.array_equal(train.images.numpy().reshape(40, -1), whole[train.index, 1:])
    assert (data.image_shape, data.num_labels, data.label_names[3]) == ((3, 32, 32), 10, "cat")


def test_both_formats_hold_the_same(rows, tmp_path):
    write_python(rows, tmp_path / "a" / PYTHON)
    write_binary(rows, tmp_path / "b" / BINARY)
    assert data_set(tmp_path / "a").fingerprint == data_set(tmp_path / "b").fingerprint


def test_a_permuted_copy_passes_and_a_damaged_one_does_not(rows, tmp_path):
    order = np.random.default_rng(1).permutation(50)
    permuted = [*np.split(np.concatenate(rows[:5])[order], 5), rows[5]]
    write_binary(permuted, tmp_path / BINARY)
    data_set(tmp_path).setup()
    permuted[2][4, 5] ^= 1
    permuted[2].tofile(tmp_path / BINARY / "data_batch_3.bin")
    with pytest.raises(UserError, match=rf"{BINARY}: damaged: the train records .*; delete the folder") as caught:
        data_set(tmp_path).setup()
    assert "\n" not in str(caught.value)


def test_a_truncated_binary_batch_is_named(rows, tmp_path):
    write_binary(rows, tmp_path / BINARY)
    os.truncate(tmp_path / BINARY / "data_batch_2.bin", 30_000)
    with pytest.raises(UserError, match=r"data_batch_2\.bin: 30000 bytes are no whole number"):
        data_set(tmp_path).setup()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(Evil()), f"it names {os.system.__module__}.system"),
        (pickle.dumps(sys.exit), "it names sys.exit"),
        (python2({b"data": 1}), "AttributeError|'int' object"),
        (python2({b"labels": [1]}), "'data'"),
        (python2([1]), "items"),
        (python2({b"data": 1})[:-5], "truncated|Ran out|EOF|exhausted"),
        (b"", "Ran out of input"),
        (b"hello", "Memo value"),
    ],
)
def test_a_foreign_pickle_is_named_and_runs_nothing(rows, tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    write_python(rows, tmp_path / PYTHON)
    (tmp_path / PYTHON / "data_batch_4").write_bytes(content)
    with pytest.raises(UserError, match=rf"data_batch_4: not an official CIFAR-10 batch \((.*{reason})") as caught:
        data_set(tmp_path).setup()
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()


@pytest.fixture
def archive(rows, tmp_path, monkeypatch):
    """An archive of the python version, with its MD5 taken for the official one."""
    write_python(rows, tmp_path / "source" / PYTHON)
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "source" / PYTHON, arcname=PYTHON)
    monkeypatch.setitem(cifar10_files.ARCHIVES, path.name, Archive(md5(path.read_bytes()), PYTHON, ""))
    return path


def test_an_archive_is_unpacked_once(archive, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    archive.rename(root / archive.name)
    first = data_set(root).fingerprint
    (root / archive.name).unlink()
    assert data_set(root).fingerprint == first


def test_the_archive_is_downloaded(archive, mirror, tmp_path, monkeypatch):
    folder, url = mirror
    archive.rename(folder / archive.name)
    monkeypatch.setattr(cifar10, "_URL", url)
    root = tmp_path / "root"
    data_set(root, download=True).setup()
    assert (root / "cifar10" / PYTHON / "test_batch").is_file()


def test_a_damaged_archive_is_named(archive, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{archive}: not the official archive .*; delete it"):
        data_set(tmp_path).setup()


def test_a_folder_that_lacks_a_batch_is_named(archive, tmp_path):
    (tmp_path / PYTHON).mkdir()
    with pytest.raises(UserError, match=rf"{PYTHON}: files are missing; delete the folder"):
        data_set(tmp_path).setup()


def test_no_files_and_no_download_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: no CIFAR-10 .*data\.root.*data\.download=true"):
        data_set(tmp_path).setup()


def test_captions_need_names(rows, tmp_path):
    write_binary(rows, tmp_path / BINARY)
    with pytest.raises(UserError, match=r"data\.captions=true"):
        data_set(tmp_path, captions=True).setup()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dump_truck_s_000123.png", "a photo of a dump truck"),
        ("airbus_s_1.png", "a photo of an airbus"),
        ("cat", "a photo of a cat"),
    ],
)
def test_caption(name, expected):
    assert caption(name) == expected


@pytest.mark.parametrize("split", ["test", pytest.param("train", marks=pytest.mark.slow)])
def test_the_official_images_in_another_order_pass(data_dir, monkeypatch, split):
    if not (data_dir / "cifar10" / "load_cifar10.py").is_file():
        pytest.skip("no packed CIFAR-10 among the test data")
    monkeypatch.syspath_prepend(str(data_dir / "cifar10"))
    from load_cifar10 import load

    images, labels, _ = load(data_dir / "cifar10", split)
    planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
    rows = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
    assert digest(rows) == cifar10_files._DIGESTS[split]
