"""Codes on disk are indexed as the tensor they stand for, and what is wrong with a folder of them is said in one line."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from trilemma.data.codes import META, StoredCodes, read_folder, sha256_of
from trilemma.data.loader import BatchStream, EvalLoader
from trilemma.errors import UserError

SIZES = (4, 4, 2)


@pytest.fixture(params=[False, True], ids=["plain", "flip"])
def stored(request, tmp_path):
    """(tensor, the same on disk)."""
    flip = request.param
    whole = torch.arange(10 * 2 * 3, dtype=torch.int16).view(10, 2, 3)
    whole = whole if flip else whole[:, 0]
    shards = []
    for i, part in enumerate(whole.split(SIZES)):
        np.save(tmp_path / f"{i}.npy", part.numpy())
        shards.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    return whole.transpose(0, 1).contiguous() if flip else whole, StoredCodes(shards, flip=flip)


def test_stored_codes_stand_for_their_tensor(stored):
    whole, codes = stored
    assert codes.shape == whole.shape
    assert codes.dtype == whole.dtype
    assert codes.num_bytes == whole.numel() * 2
    assert torch.equal(codes.all(), whole)
    plain = whole[0] if whole.ndim == 3 else whole
    assert torch.equal(codes.plain().all(), plain)
    assert torch.equal(codes[3:9], plain[3:9])
    rows = codes.rows()
    flat = whole.flatten(0, 1) if whole.ndim == 3 else whole
    assert len(rows) == len(flat)
    assert torch.equal(torch.cat([rows[i : i + 7] for i in range(0, len(rows), 7)]), flat)


def test_any_rows_are_taken(stored):
    whole, codes = stored
    rng = np.random.default_rng(0)
    for size in (0, 1, 7, 30):
        rows, mirrored = rng.integers(10, size=size), rng.random(size) < 0.5
        if whole.ndim == 3:
            assert torch.equal(codes.take(rows, mirrored), whole[mirrored.astype(int), rows])
        assert torch.equal(codes.take(rows), (whole[0] if whole.ndim == 3 else whole)[rows])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_of_stored_codes(toy, stored, num_workers):
    whole, codes = stored
    flip = whole.ndim == 3
    split = toy(captions=True).split("train")
    stream = BatchStream(split, batch_size=3, num_batches=6, flip=flip, codes=codes, window=2, num_workers=num_workers)
    batches = list(stream)
    for batch in batches:
        rows = batch["index"] - 100
        assert batch["code"].dtype == torch.int64
        versions = whole[:, rows].long() if flip else whole[None, rows].long()
        assert torch.all(torch.stack([(batch["code"] == v).all(1) for v in versions]).any(0))
        assert torch.equal(batch["label"], split.labels[rows])
    first = torch.cat([batch["index"] for batch in batches[:3]]).tolist()
    assert len(set(first)) == 9
    state = stream.state_dict()
    other = BatchStream(split, batch_size=3, num_batches=6, flip=flip, codes=codes, window=1)
    with pytest.raises(UserError, match="had window 2, this one has 1"):
        other.load_state_dict(state)


def test_an_epoch_of_stored_codes_reads_few_files_at_a_time(toy, stored):
    split = toy().split("train")
    flip = stored[0].ndim == 3
    options = {"batch_size": 2, "num_batches": 5, "flip": flip, "codes": stored[1]}
    for seed in range(5):
        files = [
            np.searchsorted(np.cumsum(SIZES), batch["index"].numpy() - 100, side="right").tolist()
            for batch in BatchStream(split, seed=seed, window=1, **options)
        ]
        assert all(len(set(pair)) == 1 for pair in files)
        runs = [pair[0] for pair in files]
        assert sum(a != b for a, b in pairwise(runs)) == 2


def test_evaluation_of_stored_codes(toy, stored):
    plain = stored[1].plain()
    for batch in EvalLoader(toy().split("train"), batch_size=4, codes=plain, num_workers=1):
        assert torch.equal(batch["code"], plain.all()[batch["index"] - 100].long())


@pytest.fixture
def folder(tmp_path):
    """A complete folder with one split."""
    root = tmp_path / "codes"
    root.mkdir()
    entries = []
    for i in range(2):
        np.save(root / f"train-{i:05d}.npy", np.full((3, 5), i, np.uint8))
        entries.append({"file": f"train-{i:05d}.npy", "size": 3})
    np.save(root / "train-index.npy", np.arange(6))
    np.save(root / "train-labels.npy", np.arange(6) % 2)
    (root / "train-captions.json").write_text(json.dumps(["é", "b", "c", "d", "e", "f"]))
    known = {k: {"file": f"train-{k}.npy"} for k in ("index", "labels")} | {"captions": {"file": "train-captions.json"}}
    for entry in (*entries, *known.values()):
        entry["sha256"] = sha256_of(root / entry["file"])
    meta = {
        "format": 1,
        "codec": {"hash": "abc"},
        "data": {"name": "toy"},
        "dtype": "uint8",
        "row_shape": [5],
        "splits": {"train": {"flip": False, "shards": entries, **known}},
    }
    (root / META).write_text(json.dumps(meta))
    return root


def test_a_folder_gives_what_was_written(folder):
    found = read_folder(folder)
    assert found.splits == ["train"]
    assert found.codes("train").all()[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert found.index("train").tolist() == list(range(6))
    assert found.labels("train").tolist() == [0, 1] * 3
    assert found.captions("train")[0] == "é"
    found.verify()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def unlink(path):
    path.unlink()


def change_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, empty, unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize("file", ["train-00001.npy", "train-index.npy", "train-labels.npy", "train-captions.json"])
def test_a_file_that_is_not_whole_is_found_at_once(folder, file, harm):
    harm(folder / file)
    found = read_folder(folder)
    with pytest.raises(UserError, match=rf"{file}: (damaged|missing).*trilemma\.tokenize"):
        found.codes("train"), found.index("train"), found.labels("train"), found.captions("train")
    assert [path.name for path in found.damaged()] == [file]


def test_a_changed_bit_is_found_by_reading_everything(folder):
    change_a_bit(folder / "train-00001.npy")
    found = read_folder(folder)
    found.codes("train")
    with pytest.raises(UserError, match=r"train-00001\.npy: damaged.*codec abc, data toy"):
        found.verify()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1}', "null"])
def test_a_damaged_description_is_refused(folder, content):
    (folder / META).write_text(content)
    with pytest.raises(UserError, match=r"meta\.json: "):
        read_folder(folder)


def test_a_folder_without_a_description_is_not_complete(folder, tmp_path):
    (folder / META).unlink()
    assert read_folder(folder) is None
    assert read_folder(tmp_path / "nowhere") is None
