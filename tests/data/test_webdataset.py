"""Tar shards give the images that were put into them, in an order that depends on the seed alone."""

import io
import json
import tarfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data.decode import Decoding, decode
from trilemma.datasets.webdataset import TarImages, WebDataset
from trilemma.errors import UserError

NUM_SHARDS, PER_SHARD = 5, 8


def picture(number, side=6, kind="png"):
    """Bytes of an image whose first pixel is its number."""
    pixels = np.random.default_rng(number).integers(256, size=(side, side, 3), dtype=np.uint8)
    pixels[0, 0] = number
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format={"jpg": "JPEG"}.get(kind, kind))
    return buffer.getvalue()


def write_tar(path, members):
    """A tar of (name, bytes), by the standard library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def sample(number, *, labels=True, captions=False, in_json=False, **options):
    key = f"s{number:04d}"
    members = [(f"{key}.png", picture(number, **options))]
    if in_json:
        members.append((f"{key}.json", json.dumps({"label": number % 3, "text": f"é {number}"}).encode()))
        return members
    if labels:
        members.append((f"{key}.cls", str(number % 3).encode()))
    if captions:
        members.append((f"{key}.txt", f"é {number}".encode()))
    return members


def write_shards(folder, prefix="train", num_shards=NUM_SHARDS, per_shard=PER_SHARD, first=0, **options):
    for s in range(num_shards):
        numbers = range(first + s * per_shard, first + (s + 1) * per_shard)
        write_tar(folder / f"{prefix}-{s:03d}.tar", [m for n in numbers for m in sample(n, **options)])


@pytest.fixture
def shards(tmp_path):
    """Options of a data set over tmp_path/shards."""

    def make(**options):
        defaults = {"shards": "train-{000..004}.tar", "root": tmp_path / "shards", "cache_dir": tmp_path / "cache"}
        defaults |= {"size": 6, "batch_size": 4, "val_fraction": 0.1, "test_fraction": 0.1, "window": 2}
        return WebDataset(**defaults | options)

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "shards"


def numbers(images):
    return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("in_json", [False, True], ids=["cls and txt", "json"])
def test_samples_come_back(shards, folder, in_json):
    write_shards(folder, captions=True, in_json=in_json)
    data = shards()
    seen = []
    for name in ("train", "val", "test"):
        split = data.split(name)
        found = numbers(split.images[:])
        assert split.labels.tolist() == [n % 3 for n in found]
        assert split.captions == [f"é {n}" for n in found]
        assert split.index.tolist() == found
        for row, n in enumerate(found):
            reference = decode(io.BytesIO(picture(n)), Decoding(6, 3, "crop"), "x")
            assert np.array_equal(split.images[row : row + 1][0].numpy(), reference)
        seen += found
    assert sorted(seen) == list(range(40))
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [32, 4, 4]
    assert data.label_names == ["0", "1", "2"]
    assert data.image_shape == (3, 6, 6)


def test_samples_need_neither_classes_nor_captions(shards, folder):
    write_shards(folder, labels=False)
    data = shards(channels=1, size=3, resize="stretch")
    assert (data.num_labels, data.split("train").captions, data.image_shape) == (None, None, (1, 3, 3))


def read_by_the_library(paths):
    """Samples as webdataset gives them, with images decoded to arrays."""
    from webdataset import Decoder, imagehandler
    from webdataset.tariterators import group_by_keys, tar_file_iterator

    samples = []
    for path in paths:
        with path.open("rb") as file:
            found = [{**member, "__url__": str(path)} for member in tar_file_iterator(file)]
        samples += [Decoder([imagehandler("rgb8")])(sample) for sample in group_by_keys(found)]
    return samples


def test_the_library_reads_the_same_samples(shards, folder):
    write_shards(folder, captions=True)
    odd = [("__meta__/x.json", b"{}"), ("a/b.c/x.PNG", picture(77)), ("a/b.c/x.cls", b"2"), ("a/b.c/x.txt", b"odd")]
    write_tar(folder / "train-000.tar", odd)
    data = shards(shards="train-{000..001}.tar", val_shards="train-002.tar", test_shards="train-003.tar")
    theirs = read_by_the_library(folder / f"train-{i:03d}.tar" for i in range(2))
    ours = data.split("train")
    assert len(theirs) == len(ours) == 9
    assert theirs[0]["__key__"] == "a/b.c/x"
    assert ours.labels.tolist() == [s["cls"] for s in theirs]
    assert ours.captions == [s["txt"] for s in theirs]
    assert np.array_equal(ours.images[:].permute(0, 2, 3, 1).numpy(), np.stack([s["png"] for s in theirs]))


def test_a_part_with_a_name_of_its_own_is_no_image(shards, folder):
    write_tar(folder / "train-000.tar", [("x.mask.png", picture(0)), ("x.cls", b"2")])
    with pytest.raises(UserError, match=r"sample x: 0 images .* it has mask\.png, cls"):
        shards(shards="train-000.tar").setup()


def test_splits_may_have_shards_of_their_own(shards, folder):
    write_shards(folder)
    write_shards(folder, "val", 1, 3, first=100)
    data = shards(val_shards="val-000.tar")
    assert numbers(data.split("val").images[:]) == [100, 101, 102]
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [36, 3, 4]
    write_shards(folder, "test", 2, 2, first=200)
    data = shards(val_shards="val-000.tar", test_shards="test-*.tar")
    assert numbers(data.split("test").images[:]) == [200, 201, 202, 203]
    assert numbers(data.split("train").images[:]) == list(range(40))


def equal(a, b):
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a | b)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_batch_n_is_the_same_for_any_number_of_ranks_and_workers(shards, folder, monkeypatch, world_size, num_workers):
    write_shards(folder, captions=True)
    whole = shards(flip=True, seed=2)
    whole.num_train_batches = 11  # more than an epoch
    expected = list(whole.train_dataloader())
    parts = []
    for rank in range(world_size):
        data = shards(flip=True, seed=2, num_workers=num_workers)
        data.num_train_batches = 11
        monkeypatch.setattr(data, "_rank", lambda rank=rank: (rank, world_size))
        loader = data.train_dataloader()
        before = [next(iter(loader))]
        state = loader.state_dict()
        rest = data.train_dataloader()
        rest.load_state_dict(state)
        parts.append(before + list(rest))
    for n, batch in enumerate(expected):
        assert torch.equal(batch["image"], torch.cat([part[n]["image"] for part in parts]))
        assert batch["caption"] == [c for part in parts for c in part[n]["caption"]]


def test_an_epoch_reads_few_shards_at_a_time(shards, folder):
    write_shards(folder)
    for seed in range(3):
        data = shards(seed=seed, window=1, batch_size=1)
        order = [int(batch["index"]) // PER_SHARD for batch in data.train_dataloader()]
        assert sum(a != b for a, b in pairwise(order)) == NUM_SHARDS - 1
        assert sorted(set(order)) == list(range(NUM_SHARDS))


def test_an_epoch_holds_every_image_at_most_once(shards, folder):
    write_shards(folder)
    epochs = shards()
    epochs.num_train_batches = 16
    indices = torch.cat([batch["index"] for batch in epochs.train_dataloader()]).view(2, -1)
    assert all(len(set(epoch.tolist())) == 32 for epoch in indices)
    assert indices[0].tolist() != indices[1].tolist()


def test_another_window_is_another_order_and_is_not_resumed(shards, folder):
    write_shards(folder)
    state = shards(window=2).train_dataloader().state_dict()
    with pytest.raises(UserError, match="had window 2, this one has 3"):
        shards(window=3).train_dataloader().load_state_dict(state)


def test_the_index_is_made_once_and_anew_for_new_shards(shards, folder, tmp_path, monkeypatch):
    write_shards(folder)
    first = shards()
    fingerprint = first.fingerprint
    assert len(list((tmp_path / "cache").glob("[!.]*"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr("trilemma.datasets.tar_index._read_shard", None)
        assert shards().fingerprint == fingerprint
    write_tar(folder / "train-002.tar", [m for n in range(50, 58) for m in sample(n)])
    assert shards().fingerprint != fingerprint


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(shards, folder, tmp_path):
    write_shards(folder)
    fingerprint = shards().fingerprint
    folder.rename(tmp_path / "moved")
    assert shards(root=tmp_path / "moved").fingerprint == fingerprint
    for changed in ({"size": 5}, {"split_seed": 1}, {"shards": "train-{000..003}.tar"}, {"resize": "stretch"}):
        assert shards(root=tmp_path / "moved", **changed).fingerprint != fingerprint
    # the same names and sizes, other classes
    write_tar(
        tmp_path / "moved" / "train-001.tar",
        [(n, b"1" if n.endswith("cls") else c) for s in range(8, 16) for n, c in sample(s)],
    )
    assert shards(root=tmp_path / "moved").fingerprint != fingerprint


def test_names_of_classes(shards, folder):
    write_shards(folder)
    (folder / "labels.txt").write_text("cat\ndog\nnewt\nemu\n")
    data = shards(label_names="labels.txt")
    assert (data.label_names, data.num_labels) == (["cat", "dog", "newt", "emu"], 4)
    (folder / "labels.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"labels\.txt: 2 names, and the shards have class 2"):
        shards(label_names="labels.txt").setup()
    with pytest.raises(UserError, match=r"nowhere\.txt: cannot be read"):
        shards(label_names="nowhere.txt").setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": "train-{000..005}.tar"}, r"train-005\.tar: no such shard; fix data\.shards"),
        ({"shards": "train-9*.tar"}, r"data\.shards=train-9\*\.tar: no such shards below"),
        ({"val_shards": "val.tar"}, r"val\.tar: no such shard; fix data\.val_shards"),
        ({"shards": "{train-000,train-000}.tar"}, "names a shard twice"),
        ({"shards": "https://x.org/a.tar"}, "must be files; fetch them first"),
        ({"shards": "pipe:cat a.tar"}, "must be files; fetch them first"),
        ({"shards": "train-000.tar", "val_fraction": 0.6, "test_fraction": 0.39}, "8 images are too few"),
        ({"val_fraction": -0.1}, r"data\.val_fraction=-0\.1"),
        ({"window": 0}, r"data\.window=0 must be at least 1"),
        ({"size": 0}, r"data\.size=0"),
        ({"channels": 2}, r"data\.channels=2"),
        ({"resize": "pad"}, r"data\.resize=pad"),
        ({"num_workers": -1}, r"data\.num_workers=-1"),
    ],
    ids=lambda value: next(iter(value.items()))[0] if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_are_refused(shards, folder, options, message):
    write_shards(folder)
    with pytest.raises(UserError, match=message):
        shards(**options).setup()


def members(**changes):
    """Two good samples and one that is changed."""
    bad = {"s9.png": picture(9), "s9.cls": b"1"} | {f"s9.{k}": v for k, v in changes.items()}
    return [*sample(0), *sample(1), *((k, v) for k, v in bad.items() if v is not None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (members(png=None), r"bad\.tar, sample s9: 0 images .* it has cls"),
        (members(jpg=b"x"), r"bad\.tar, sample s9: 2 images"),
        (members(cls=None), r"bad\.tar: a sample has no class"),
        (members(txt=b"only one"), r"train-000\.tar: a sample has no caption"),
        (members(cls=b"cat"), r"sample s9: its cls cannot be read"),
        (members(cls=b"-1"), r"sample s9: its class is -1"),
        (members(cls=None, json=b'{"label": "cat"}'), r"sample s9: its class is 'cat'"),
        (members(cls=None, json=b'{"label": true}'), r"sample s9: its class is True"),
        (members(json=b"{"), r"sample s9: its json cannot be read"),
        (members(txt=b"\xff"), r"sample s9: its txt cannot be read"),
        ([*members(), ("s9.cls", b"1")], r"bad\.tar: .*duplicate"),
        ([("readme", b"x")], r"bad\.tar: no samples"),
        ([], r"bad\.tar: no samples"),
    ],
)
def test_samples_that_are_not_as_they_should_be_are_refused(shards, folder, content, message):
    write_shards(folder, num_shards=3)
    write_tar(folder / "bad.tar", content)
    with pytest.raises(UserError, match=message) as caught:
        shards(shards="{train-000,train-001,bad}.tar").setup()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [0, 100, 1000, -512 * 19, -5000], ids=str)
def test_a_truncated_shard_is_refused(shards, folder, cut):
    write_shards(folder)
    path = folder / "train-003.tar"
    path.write_bytes(path.read_bytes()[:cut] if cut else b"")
    with pytest.raises(UserError, match=r"train-003\.tar: (not a whole tar file|no samples)"):
        shards().setup()


@pytest.mark.parametrize("content", [b"no tar" * 1000, b"\x1f\x8b" + bytes(600)], ids=["text", "gzip"])
def test_what_is_no_plain_tar_is_refused(shards, folder, content):
    write_shards(folder)
    (folder / "train-003.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"train-003\.tar: not a whole tar file"):
        shards().setup()


def test_splits_that_disagree_about_classes_are_refused(shards, folder):
    write_shards(folder)
    write_shards(folder, "val", 1, 4, labels=False)
    with pytest.raises(UserError, match="the val shards have no classes"):
        shards(val_shards="val-000.tar").setup()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named_when_it_is_read(shards, folder, num_workers):
    write_shards(folder)
    write_tar(folder / "train-000.tar", members(png=b"no picture"))
    data = shards(num_workers=num_workers, window=1)
    with pytest.raises(UserError, match=r"train-000\.tar, member s\d+\.png: cannot be read as an image"):
        list(data.train_dataloader()), data.split("val").images[:], data.split("test").images[:]


def test_a_shard_that_shrank_is_noticed(shards, folder):
    write_shards(folder)
    split = shards().split("train")
    path = folder / "train-004.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train-004\.tar: shorter than when it was indexed"):
        split.images[:]


def test_few_shards_are_open_at_a_time(shards, folder, monkeypatch):
    monkeypatch.setattr("trilemma.datasets.webdataset._MAX_OPEN", 2)
    write_shards(folder)
    images = shards().split("train").images
    assert isinstance(images, TarImages)
    assert numbers(images[:]) == numbers(images[torch.arange(32)])
    assert len(images._open) == 2


def test_without_the_library_it_says_what_to_install(shards, folder, monkeypatch):
    import sys

    write_shards(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "webdataset.shardlists", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[webdataset\]'"):
        shards().setup()


def add_link(path, kind):
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("s99.png")
        member.type, member.linkname = kind, "s0.png"
        archive.addfile(member)


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE], ids=["hard", "symbolic"])
def test_a_link_in_a_shard_is_refused_and_not_dropped(shards, folder, kind):
    write_shards(folder)
    add_link(folder / "train-000.tar", kind)
    with pytest.raises(UserError, match=r"train-000\.tar, member s99\.png: a link.*--hard-dereference"):
        shards().setup()


@pytest.mark.parametrize("pattern", ["train-**.tar", "tr**/x.tar"])
def test_stars_that_are_no_pattern_are_one_line(shards, folder, pattern):
    write_shards(folder)
    with pytest.raises(UserError, match=r"data\.shards=") as error:
        shards(shards=pattern).setup()
    assert "\n" not in str(error.value)


def test_a_class_that_no_table_holds_is_one_line(shards, folder):
    write_tar(folder / "big.tar", [("a.png", picture(0)), ("a.cls", str(2**70).encode())])
    with pytest.raises(UserError, match="a whole number from 0 to 999999 is expected"):
        shards(shards="big.tar").setup()
