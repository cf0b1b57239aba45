import numpy as np
import pytest
import torch

from trilemma.data.split import MappedImages, Split, balanced_order, windowed_order


@pytest.fixture
def stored(tmp_path):
    array = np.random.default_rng(0).integers(256, size=(9, 3, 4, 5), dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    return array, np.load(tmp_path / "a.npy", mmap_mode="r")


@pytest.mark.parametrize("index", [slice(1, 3), slice(None), torch.tensor([2, 0, 2]), np.array([1, 1])])
def test_mapped_images_index_like_the_tensor_they_stand_for(stored, index):
    array, mapped = stored
    rows = np.array([7, 1, 4, 0])
    images, reference = MappedImages(mapped, rows, digest="x"), torch.from_numpy(array[rows])
    assert (len(images), images.shape, images.dtype) == (4, reference.shape, torch.uint8)
    assert torch.equal(images[index], reference[index])


def test_mapped_images_are_copies(stored):
    array, mapped = stored
    images = MappedImages(mapped, np.arange(9), digest="x")
    images[:2].zero_()
    assert torch.equal(images[:2], torch.from_numpy(array[:2]))


def make_split(**changes):
    parts = {
        "images": torch.arange(24, dtype=torch.uint8).reshape(4, 1, 2, 3),
        "labels": torch.tensor([0, 1, 0, 1]),
        "captions": ["a", "b", "c", "d"],
        "index": torch.arange(4),
    }
    return Split(**parts | changes)


def test_digest_sees_every_part_and_the_order():
    split = make_split()
    others = [
        make_split(images=split.images.flip(0)),
        make_split(images=split.images.reshape(4, 1, 3, 2)),
        make_split(labels=split.labels.flip(0)),
        make_split(labels=None),
        make_split(captions=["a", "b", "c", "e"]),
        split.take(np.array([0, 1, 3, 2])),
    ]
    assert make_split().digest() == split.digest()
    assert len({split.digest(), *(other.digest() for other in others)}) == 1 + len(others)


def test_take_moves_all_parts_together():
    taken = make_split().take(np.array([3, 1]))
    assert taken.images[:, 0, 0, 0].tolist() == [18, 6]
    assert (taken.labels.tolist(), taken.captions, taken.index.tolist()) == ([1, 1], ["d", "b"], [3, 1])


@pytest.mark.parametrize(
    "wrong",
    [{"labels": torch.zeros(3)}, {"captions": ["a"]}, {"index": torch.arange(5)}, {"images": torch.zeros(4, 1, 2, 3)}],
)
def test_mismatched_parts_are_an_error(wrong):
    with pytest.raises(ValueError, match=r"for 4 images|uint8"):
        make_split(**wrong)


@pytest.mark.parametrize("cut", [50, 137, 600])
def test_every_prefix_of_the_balanced_order_is_stratified(cut):
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    order = balanced_order(1000, seed=3, labels=labels)
    assert np.array_equal(np.sort(order), np.arange(1000))
    counts = np.bincount(labels[order[:cut]], minlength=3)
    assert np.all(np.abs(counts - cut * np.array([0.5, 0.3, 0.2])) <= 2)


def test_balanced_order_is_random_within_a_class_and_depends_on_the_seed_alone():
    labels = np.repeat([0, 1], 200)
    order = balanced_order(400, seed=1, labels=labels)
    assert np.array_equal(order, balanced_order(400, seed=1, labels=labels))
    assert not np.array_equal(order, balanced_order(400, seed=2, labels=labels))
    zeros = order[labels[order] == 0]
    assert abs(np.corrcoef(zeros, np.arange(200))[0, 1]) < 0.3


BOUNDS = np.array([0, 5, 6, 6, 16, 20])


@pytest.mark.parametrize("window", [1, 2, 3, 5, 99])
def test_a_windowed_order_is_a_permutation_that_mixes_so_many_files(window):
    for seed in range(20):
        order = windowed_order(BOUNDS, rng=np.random.default_rng(seed), window=window)
        assert sorted(order) == list(range(20))
        files = list(np.random.default_rng(seed).permutation(5))
        start = 0
        for first in range(0, 5, window):
            chosen = files[first : first + window]
            size = sum(BOUNDS[f + 1] - BOUNDS[f] for f in chosen)
            found = np.searchsorted(BOUNDS, order[start : start + size], side="right") - 1
            assert set(found) <= set(chosen)
            start += size


def test_a_window_of_all_files_is_a_uniform_permutation():
    rng = np.random.default_rng(0)
    places = np.array([np.argsort(windowed_order(BOUNDS, rng=rng, window=5)) for _ in range(4000)])
    assert np.all(np.abs(places.mean(0) - 9.5) < 5 * 5.77 / 4000**0.5)
