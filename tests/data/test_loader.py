import copy
from itertools import chain, islice

import numpy as np
import pytest
import torch

from trilemma.data.images import to_float
from trilemma.data.loader import BatchStream, EvalLoader
from trilemma.data.split import MappedImages
from trilemma.errors import UserError


@pytest.fixture
def split(toy):
    return toy(captions=True).split("train")


def rows(batch):
    """Positions of a toy batch's images in their split."""
    return (batch["index"] - 100).tolist()


def test_an_epoch_holds_each_image_at_most_once_and_epochs_differ(split):
    stream = BatchStream(split, batch_size=3, num_batches=6)
    batches = [rows(batch) for batch in stream]
    first, second = list(chain(*batches[:3])), list(chain(*batches[3:]))
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


def test_all_images_are_equally_frequent_in_the_long_run(split):
    stream = BatchStream(split, batch_size=3, num_batches=3000)
    counts = np.bincount([row for batch in stream for row in rows(batch)], minlength=10)
    assert np.all(np.abs(counts / 900 - 1) < 0.05)


def test_a_batch_is_what_the_split_holds_at_its_index(split):
    for batch in BatchStream(split, batch_size=4, num_batches=3):
        where = rows(batch)
        assert torch.equal(batch["image"], to_float(split.images[where]))
        assert torch.equal(batch["label"], split.labels[where])
        assert batch["caption"] == [split.captions[i] for i in where]
        assert batch["index"].dtype == batch["label"].dtype == torch.int64


def test_batch_n_is_a_pure_function_of_seed_and_n(split):
    stream = BatchStream(split, batch_size=3, num_batches=9, seed=5, flip=True)
    expected = list(stream)
    other = BatchStream(split, batch_size=3, num_batches=9, seed=5, flip=True)
    for n in (8, 0, 4, 4, 7):
        assert torch.equal(other.batch(n)["image"], expected[n]["image"])
    reseeded = BatchStream(split, batch_size=3, num_batches=9, seed=6, flip=True)
    assert [rows(batch) for batch in reseeded] != [rows(batch) for batch in expected]


def test_global_generators_are_left_alone(split):
    before = torch.get_rng_state(), copy.deepcopy(np.random.get_state()[1])  # noqa: NPY002
    list(BatchStream(split, batch_size=3, num_batches=9, flip=True))
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("stop", range(8))
def test_a_restored_stream_gives_exactly_the_batches_that_were_left(split, stop):
    whole = [batch["image"] for batch in BatchStream(split, batch_size=3, num_batches=7, flip=True)]
    killed = BatchStream(split, batch_size=3, num_batches=7, flip=True)
    list(islice(killed, stop))
    restored = BatchStream(split, batch_size=3, num_batches=7, flip=True)
    untouched = iter(restored)  # as Lightning does, before it restores
    restored.load_state_dict(killed.state_dict())
    del untouched
    left = [batch["image"] for batch in restored] if stop < 7 else []
    assert len(left) == 7 - stop
    assert all(torch.equal(a, b) for a, b in zip(whole[stop:], left, strict=True))


def test_a_further_pass_goes_on_instead_of_repeating(split):
    stream = BatchStream(split, batch_size=3)
    assert len(stream) == 3
    passes = [[rows(batch) for batch in stream] for _ in range(2)]
    assert passes[0] + passes[1] == [rows(batch) for batch in BatchStream(split, batch_size=3, num_batches=6)]


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 4}])
def test_a_state_of_another_stream_is_refused(split, other):
    state = BatchStream(split, batch_size=3).state_dict()
    with pytest.raises(UserError, match=rf"{next(iter(other))}.*init_from"):
        BatchStream(split, **{"batch_size": 3} | other).load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_share_the_global_batch(split, world_size):
    options = {"batch_size": 6, "num_batches": 4, "flip": True}
    whole = list(BatchStream(split, **options))
    shards = [list(BatchStream(split, rank=r, world_size=world_size, **options)) for r in range(world_size)]
    for n, batch in enumerate(whole):
        assert torch.equal(batch["image"], torch.cat([shard[n]["image"] for shard in shards]))
        assert batch["caption"] == list(chain(*(shard[n]["caption"] for shard in shards)))


def test_flip_mirrors_about_half_of_the_images(split):
    plain = BatchStream(split, batch_size=10, num_batches=200)
    flipped = 0
    for a, b in zip(plain, BatchStream(split, batch_size=10, num_batches=200, flip=True), strict=True):
        same = (a["image"] == b["image"]).flatten(1).all(1)
        mirrored = (a["image"].flip(-1) == b["image"]).flatten(1).all(1)
        assert torch.all(same | mirrored)
        flipped += int(mirrored.sum())
    assert 0.45 < flipped / 2000 < 0.55


def test_codes_stand_for_the_images_and_for_their_mirrors(split):
    # The code of an image is its pixels: so the codes must equal what the image stream gives.
    codes = torch.stack([split.images.flatten(1), split.images.flip(-1).flatten(1)])
    images = BatchStream(split, batch_size=5, num_batches=8, flip=True)
    for a, b in zip(images, BatchStream(split, batch_size=5, num_batches=8, flip=True, codes=codes), strict=True):
        assert "image" not in b
        assert b["code"].dtype == torch.int64
        assert torch.equal(to_float(b["code"].to(torch.uint8)), a["image"].flatten(1))
        assert torch.equal(a["label"], b["label"])


def test_images_on_disk_give_the_same_batches(split, tmp_path):
    np.save(tmp_path / "images.npy", split.images.numpy())
    mapped = MappedImages(np.load(tmp_path / "images.npy", mmap_mode="r"), np.arange(10), digest="x")
    on_disk = type(split)(images=mapped, labels=split.labels, captions=split.captions, index=split.index)
    for a, b in zip(
        BatchStream(split, batch_size=4, num_batches=5, flip=True),
        BatchStream(on_disk, batch_size=4, num_batches=5, flip=True),
        strict=True,
    ):
        assert torch.equal(a["image"], b["image"])


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (11, 1), (5, 2)])
def test_a_batch_that_cannot_be_filled_or_shared_is_refused(split, batch_size, world_size):
    with pytest.raises(UserError, match=rf"data\.batch_size={batch_size}"):
        BatchStream(split, batch_size=batch_size, world_size=world_size)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("batch_size", "max_images"), [(4, None), (3, None), (4, 5), (64, None), (5, 6)])
def test_evaluation_sees_each_image_once_in_equally_many_batches(split, batch_size, max_images, world_size):
    shards = [
        list(EvalLoader(split, batch_size=batch_size, max_images=max_images, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    assert len({len(shard) for shard in shards}) == 1
    assert all(len(batch["index"]) for shard in shards for batch in shard)
    seen = [row for batches in zip(*shards, strict=True) for batch in batches for row in rows(batch)]
    assert seen == list(range(max_images or 10))


def test_evaluation_batches_are_fixed_and_complete(split):
    loader = EvalLoader(split, batch_size=4, codes=split.images.flatten(1))
    assert [len(batch["index"]) for batch in loader] == [4, 4, 2]
    assert len(loader) == 3
    for batch, again in zip(loader, loader, strict=True):
        where = rows(batch)
        assert torch.equal(batch["image"], again["image"])
        assert torch.equal(batch["image"], to_float(split.images[where]))
        assert torch.equal(batch["code"], split.images[where].flatten(1).long())
        assert torch.equal(batch["label"], split.labels[where])
        assert batch["caption"] == [split.captions[i] for i in where]


def test_fewer_images_than_devices_is_refused(split):
    with pytest.raises(UserError, match="2 images cannot be shared by 3 devices"):
        EvalLoader(split, batch_size=4, max_images=2, world_size=3)
