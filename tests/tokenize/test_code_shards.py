"""Codes are the same whoever makes them, however many there are and whatever stops them."""

import multiprocessing
import os
import signal
import time

import pytest
import torch

from trilemma.codecs.base import flatten
from trilemma.data.codes import META, read_folder
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.first_stage.codes import cached_codes, codec_hash
from trilemma.first_stage.shards import CodeMaker

SPLITS = ("train", "val", "test")


def maker(codec, data, folder, **options):
    return CodeMaker(codec, codec_hash(codec), data, folder, **{"batch_size": 4, "shard_size": 8} | options)


def content(folder):
    """Of what has its name; what a killed process was writing goes within the hour."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".tmp-")}


@pytest.fixture
def expected(toy, vq, tmp_path):
    """Content of a folder that was made in one go."""
    maker(vq(), toy(), tmp_path / "expected").make(SPLITS, quiet=True)
    return content(tmp_path / "expected")


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size", "dtype"), [(12, torch.uint8), (257, torch.int16), (2**15 + 1, torch.int32)])
def test_tokens_are_what_the_codec_says(toy, vq, tmp_path, flip, size, dtype):
    codec, data = vq(codebook_size=size), toy(flip=flip, captions=True)
    made = maker(codec, data, tmp_path).make(SPLITS, quiet=True)
    for name in SPLITS:
        split, codes = data.split(name), made.codes(name).all()
        images = to_float(split.images)
        wanted = flatten(codec.encode(images))
        if flip and name == "train":
            wanted = torch.stack([wanted, flatten(codec.encode(images.flip(3)))])
        assert codes.dtype == dtype
        assert torch.equal(codes.long(), wanted)
        assert torch.equal(made.labels(name), split.labels)
        assert torch.equal(made.index(name), split.index)
        assert made.captions(name) == split.captions
    assert len(made.meta["splits"]["train"]["shards"]) == 4
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.name.endswith(".npy.json")]
    made.verify()


@pytest.mark.parametrize("flip", [False, True])
def test_continuous_codes_are_what_the_codec_caches(toy, kl, tmp_path, flip):
    codec, data = kl(), toy(flip=flip)
    made = maker(codec, data, tmp_path, batch_size=26, shard_size=26).make(("train", "val"), quiet=True)
    images = to_float(data.split("train").images)
    codes = made.codes("train")
    assert torch.equal((codes.all()[0] if flip else codes.all()), codec.cache(images))
    whole = codes.all().flatten(0, 1) if flip else codes.all()
    other = kl()
    codec.standardise(codes.rows())
    other.standardise(whole)
    assert codec.scale == other.scale
    assert torch.equal(codec.shift, other.shift)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_that_read_ahead_change_nothing(toy, vq, tmp_path, expected, num_workers):
    maker(vq(), toy(stored=True, num_workers=num_workers), tmp_path / "x").make(SPLITS, quiet=True)
    assert content(tmp_path / "x") == expected


def make_slowly(codec, data, folder):
    """Make codes in a process of its own, a while for each batch."""
    torch.set_num_threads(1)
    made = maker(codec, data, folder)
    encode = made._encoder.__call__

    def slowly(images, *, flip):
        time.sleep(0.02)
        return encode(images, flip=flip)

    made._encoder = type("Slow", (), {"dtype": made._encoder.dtype, "__call__": staticmethod(slowly)})()
    made.make(SPLITS, quiet=True)


@pytest.fixture
def start(toy, vq, tmp_path):
    """Start a process that makes codes in the folder x."""
    started = []

    def begin():
        process = multiprocessing.get_context("fork").Process(target=make_slowly, args=(vq(), toy(), tmp_path / "x"))
        process.start()
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def test_three_jobs_at_once_do_each_other_no_harm(start, tmp_path, expected):
    for process in [start() for _ in range(3)]:
        process.join(30)
        assert process.exitcode == 0
    assert content(tmp_path / "x") == expected


def test_kill_9_at_any_moment_loses_the_shard_at_hand_and_no_more(start, tmp_path, expected):
    folder, stood = tmp_path / "x", 0
    for attempt in range(3):
        process = start()
        time.sleep(0.12 + 0.013 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        shards = len(list(folder.glob("*.npy")))
        assert shards >= stood
        stood = shards
    last = start()
    last.join(30)
    assert content(folder) == expected


class Dead(BaseException):
    pass


@pytest.mark.parametrize("moment", range(0, 15, 3))
def test_whatever_was_being_written_when_it_died(toy, vq, tmp_path, expected, monkeypatch, moment):
    """Died between any two files: the next one goes on, and does not do again what stands."""
    import trilemma.first_stage.shards as module

    folder, write, count = tmp_path / "x", module._write_bytes, 0

    def dies(path, data):
        nonlocal count
        count += 1
        if count > moment:
            raise Dead
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_bytes", dies)
        with pytest.raises(Dead):
            maker(vq(), toy(), folder).make(SPLITS, quiet=True)
    written = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_bytes", lambda path, data: written.append(path.name) or write(path, data))
        maker(vq(), toy(), folder).make(SPLITS, quiet=True)
    assert content(folder) == expected
    made = [name for name in written if name.endswith(".npy") and name.split("-")[1][0].isdigit()]
    assert len(made) == min(7, max(0, 8 - moment))  # the manifest is first


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "begun"])
def test_a_folder_of_other_codes_is_refused(toy, vq, tmp_path, complete):
    made = maker(vq(), toy(flip=True), tmp_path)
    made.make(SPLITS, quiet=True)
    if not complete:
        made._write_meta({})
    before = content(tmp_path)
    for codec, data, options, message in [
        (vq(1), toy(flip=True), {}, r"codes by another codec \(hash \w{16}, and this one's is \w{16}\).*output_dir"),
        (vq(), toy(flip=True, seed_of_images=1), {}, "codes of other data"),
        (vq(), toy(), {}, r"made with data\.flip=true"),
        (vq(), toy(flip=True), {"batch_size": 5}, "begun with batch_size=4 shard_size=8"),
        (vq(), toy(flip=True), {"shard_size": 9}, "begun with batch_size=4 shard_size=8"),
    ]:
        with pytest.raises(UserError, match=message):
            maker(codec, data, tmp_path, **options)
    assert content(tmp_path) == before
    maker(vq(), toy(flip=True), tmp_path, batch_size=None, shard_size=None).make(SPLITS, quiet=True)
    assert content(tmp_path).keys() >= {META}


@pytest.mark.parametrize("name", ["batch_size", "shard_size"])
def test_sizes_out_of_range_are_refused(toy, vq, tmp_path, name):
    with pytest.raises(UserError, match=rf"{name}=0 must be at least 1"):
        maker(vq(), toy(), tmp_path, **{name: 0})


def test_a_shard_that_is_not_whole_is_made_again(toy, vq, tmp_path, expected):
    folder = tmp_path / "expected"
    (folder / "train-00001.npy").write_bytes(b"")
    (folder / "val-00000.npy").unlink()
    maker(vq(), toy(), folder).make(SPLITS, quiet=True)
    assert content(folder) == expected


def test_verifying_finds_a_changed_bit(toy, vq, tmp_path, expected):
    folder = tmp_path / "expected"
    one = maker(vq(), toy(), folder)
    names = ["train-00002.npy", "train-labels.npy"]
    for name in names:
        harmed = bytearray(expected[name])
        harmed[-1] ^= 1
        (folder / name).write_bytes(harmed)
    assert [path.name for path in one.discard_damaged()] == names
    assert one.discard_damaged() == []
    one.make(SPLITS, quiet=True)
    assert content(folder) == expected


def test_shards_without_a_manifest_are_refused(toy, vq, tmp_path, expected):
    (tmp_path / "expected" / META).unlink()
    with pytest.raises(UserError, match="codes that nothing says the codec of"):
        maker(vq(), toy(), tmp_path / "expected")


def test_splits_are_added_to_those_that_stand(toy, vq, tmp_path, expected):
    folder = tmp_path / "x"
    maker(vq(), toy(), folder).make(("train", "val"), quiet=True)
    assert read_folder(folder).splits == ["train", "val"]
    maker(vq(), toy(), folder).make(SPLITS, quiet=True)
    assert content(folder) == expected


def test_complete_codes_are_taken_from_where_nothing_can_be_written(toy, vq, tmp_path, monkeypatch):
    cached_codes(vq(), toy(), tmp_path)

    def refuse(*args, **kwargs):
        raise PermissionError

    monkeypatch.setattr("trilemma.first_stage.shards._write_bytes", refuse)
    codes = cached_codes(vq(), toy(), tmp_path)
    assert codes["train"].shape == (26, 4)


def test_a_folder_that_cannot_be_made_is_refused(toy, vq, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        maker(vq(), toy(), tmp_path / "file" / "x").make(SPLITS, quiet=True)
