"""`data=tokens`: a prior that has never seen an image trains as one that has."""

import pytest
import torch
from omegaconf import OmegaConf

from trilemma.data.codes import META
from trilemma.datasets.tokens import TokenData
from trilemma.errors import UserError
from trilemma.first_stage.codes import cached_codes, codec_hash
from trilemma.first_stage.shards import CodeMaker

NODE = {"_target_": "somewhere.Toy", "root": "/data", "batch_size": 6, "seed": 3, "num_workers": 2, "val_size": 9}


@pytest.fixture
def tokens(toy, vq, tmp_path):
    """Make a folder of codes of the toy images; returns it."""

    def make(codec=None, splits=("train", "val", "test"), **options):
        codec = vq() if codec is None else codec
        data = toy(**options)
        CodeMaker(codec, codec_hash(codec), data, tmp_path / "tokens", node=NODE).make(splits, quiet=True)
        return tmp_path / "tokens"

    return make


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_those_of_the_images_data_set(toy, vq, tokens, tmp_path, flip, num_workers):
    root = tokens(flip=flip, captions=True)
    data = TokenData(root=root, batch_size=6, seed=3, flip=flip, num_workers=num_workers, max_val_images=8)
    data.use_codes(cached_codes(vq(), data, tmp_path / "unused"))
    reference = toy(flip=flip, captions=True, seed=3, max_val_images=8)
    reference.use_codes(cached_codes(vq(), reference, tmp_path / "cache"))
    assert not (tmp_path / "unused").exists()
    assert data.image_shape == reference.image_shape
    assert data.label_names == reference.label_names
    assert data.num_labels == 3
    assert data.fingerprint == reference.fingerprint
    for ours, theirs in zip(data.train_dataloader(), reference.train_dataloader(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[k], theirs[k]) for k in ("code", "index", "label"))
        assert ours["caption"] == theirs["caption"]
    for ours, theirs in zip(data.val_dataloader(), reference.val_dataloader(), strict=True):
        assert ours.keys() == theirs.keys() - {"image"}
        assert all(torch.equal(ours[k], theirs[k]) for k in ours if k != "caption")
    assert sum(len(batch["code"]) for batch in data.test_dataloader()) == 5


def test_codes_of_mirror_images_may_be_left_out_but_not_made_up(vq, tokens):
    data = TokenData(root=tokens(flip=True), batch_size=6)
    data.use_codes(cached_codes(vq(), data, "unused"))
    assert next(iter(data.train_dataloader()))["code"].shape == (6, 4)


def test_flip_without_codes_of_mirror_images_is_refused(tokens):
    with pytest.raises(UserError, match=r"data\.flip=true: .* no codes of mirror images"):
        TokenData(root=tokens(), batch_size=6, flip=True).setup()


def test_a_foreign_codec_is_refused(vq, kl, tokens):
    data = TokenData(root=tokens(), batch_size=6)
    for other in (vq(1), kl()):
        with pytest.raises(UserError, match=r"codes by another codec \(hash \w{16}.*codec\.checkpoint=PATH"):
            cached_codes(other, data, "unused")


def test_what_needs_the_images_says_so(tokens):
    data = TokenData(root=tokens(), batch_size=6)
    split = data.split("test")
    assert not split.has_images
    with pytest.raises(UserError, match="holds codes and no images"):
        split.images[:2]
    with pytest.raises(UserError, match="holds codes and no images"):
        next(iter(data.train_dataloader()))


def test_the_images_own_data_set_is_written_down_without_how_it_was_read(tokens):
    assert TokenData(root=tokens(), batch_size=6).source == {
        "_target_": "somewhere.Toy",
        "root": "/data",
        "val_size": 9,
        "batch_size": 1,
    }


def test_folders_that_are_no_codes_are_refused(tokens, tmp_path):
    with pytest.raises(UserError, match=rf"{tmp_path}: no codes \(meta\.json\); set data\.root"):
        TokenData(root=tmp_path).setup()
    root = tokens(splits=("train", "val"))
    with pytest.raises(UserError, match=r"no codes of test; python -m trilemma\.tokenize"):
        TokenData(root=root, batch_size=6).setup()
    (root / META).unlink()
    (root / "train-00000.npy.json").write_text("{}")
    with pytest.raises(UserError, match="not complete"):
        TokenData(root=root).setup()


def test_verifying_reads_everything(tokens):
    root = tokens()
    TokenData(root=root, batch_size=6, verify=True).setup()
    path = root / "train-00000.npy"
    harmed = bytearray(path.read_bytes())
    harmed[-1] ^= 1
    path.write_bytes(harmed)
    TokenData(root=root, batch_size=6).setup()
    with pytest.raises(UserError, match=r"train-00000\.npy: damaged"):
        TokenData(root=root, batch_size=6, verify=True).setup()


def test_a_batch_larger_than_the_data_is_refused(tokens):
    with pytest.raises(UserError, match=r"data\.batch_size=64 must lie between 1 and 26"):
        TokenData(root=tokens()).setup()


def test_the_record_of_the_splits_can_be_written(tokens):
    record = TokenData(root=tokens(), batch_size=6).split_record()
    assert record["splits"]["train"]["size"] == 26
    OmegaConf.to_yaml(OmegaConf.create(record))
