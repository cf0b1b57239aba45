import hashlib

import numpy as np
import pytest
import torch

from trilemma.datasets.mnist import MNIST
from trilemma.datasets.stacked_mnist import StackedMNIST
from trilemma.errors import UserError

SPLITS = ("train", "val", "test")


@pytest.fixture
def root(idx_writer, tmp_path, monkeypatch):
    """An MNIST of 40 + 10 images whose pixels are all their number in their file: 0..39 and 100..109."""
    checksums = {}
    folder = tmp_path / "mnist"
    folder.mkdir()
    for prefix, size, first in (("train", 40, 0), ("t10k", 10, 100)):
        numbers = np.arange(size)
        images = np.broadcast_to((first + numbers)[:, None, None], (size, 28, 28))
        for suffix, values in (("images-idx3", images), ("labels-idx1", numbers % 10)):
            content = idx_writer(folder / f"{prefix}-{suffix}-ubyte", values)
            checksums[f"{prefix}-{suffix}-ubyte"] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(MNIST, "checksums", checksums)
    return tmp_path


def stacked(root, **options):
    defaults = {"train_size": 200, "val_size": 50, "test_size": 60, "digits_val_size": 10, "download": False}
    return StackedMNIST(root=root, **defaults | {"batch_size": 5} | options)


def test_channels_are_digits_and_the_label_reads_them(root):
    data = stacked(root)
    digits = MNIST(root=root, val_size=10, download=False, batch_size=5)
    for name, size in zip(SPLITS, (200, 50, 60), strict=True):
        split = data.split(name)
        assert split.images.shape == (size, 3, 28, 28)
        assert (split.images == split.images[:, :, :1, :1]).all()
        numbers = split.images[:, :, 0, 0].long()
        # Only digits of MNIST's own split of that name, and every channel is free of the others.
        assert set(numbers.flatten().tolist()) <= set(digits.split(name).images[:, 0, 0, 0].tolist())
        labels = [int("".join(str(n % 10) for n in row)) for row in numbers.tolist()]
        assert split.labels.tolist() == labels
        assert split.index.tolist() == list(range(size))
    assert (data.image_shape, data.num_labels) == ((3, 28, 28), 1000)
    declared = StackedMNIST.declared({"train_size": 200})
    assert (declared.image_shape, declared.num_labels) == (data.image_shape, data.num_labels)
    assert declared.num_train_images == len(data.split("train"))
    assert (data.label_names[0], data.label_names[70], data.label_names[999]) == ("000", "070", "999")


def test_train_and_test_share_no_digit(root):
    data = stacked(root)
    train, val, test = (set(data.split(name).images.unique().tolist()) for name in SPLITS)
    assert len(train | val | test) == len(train) + len(val) + len(test)
    assert len(train) == 30  # 600 draws of 30 digits miss one with probability 4e-8


def test_channels_are_independent_and_uniform(root):
    labels = stacked(root, train_size=20_000).split("train").labels
    digits = torch.stack([labels // 100, labels // 10 % 10, labels % 10], 1)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        counts = torch.bincount(10 * digits[:, a] + digits[:, b], minlength=100).double()
        chi_squared = ((counts - 200).square() / 200).sum()
        assert 55 < chi_squared < 160  # 99 degrees of freedom: mean 99, deviation 14


def test_stacks_follow_the_split_seed_and_nothing_else(root):
    data = stacked(root)
    assert stacked(root, seed=3, batch_size=7).fingerprint == data.fingerprint
    assert stacked(root, split_seed=1).fingerprint != data.fingerprint
    longer = stacked(root, train_size=300)
    assert torch.equal(longer.split("train").images[:200], data.split("train").images)
    assert longer.split("test").digest() == data.split("test").digest()


def test_a_batch_holds_stacks_and_their_labels(root):
    data = stacked(root)
    split = data.split("train")
    batch = next(iter(data.train_dataloader()))
    where = batch["index"]
    assert torch.equal(batch["image"], split.images[where] / 127.5 - 1)
    assert torch.equal(batch["label"], split.labels[where])


def test_missing_files_are_a_user_error(root, tmp_path):
    with pytest.raises(UserError, match=r"no mnist files.*data\.root"):
        stacked(tmp_path / "nowhere").setup()


@pytest.mark.parametrize("option", ["train_size", "val_size", "test_size", "digits_val_size"])
def test_sizes_are_checked(tmp_path, option):
    with pytest.raises(UserError, match=rf"data\.{option}=0"):
        stacked(tmp_path, **{option: 0})


def test_the_official_digits_cover_every_mode(data_dir):
    data = StackedMNIST(root=data_dir, download=False)
    assert [len(data.split(name)) for name in SPLITS] == [60_000, 5_000, 26_000]
    for name in ("train", "test"):
        assert (torch.bincount(data.split(name).labels, minlength=1000) > 0).all()
    assert not torch.equal(data.split("train").images[:, 0], data.split("train").images[:, 1])
