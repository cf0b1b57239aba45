"""`python -m trilemma.shards`: an image folder, or any data set, in tar shards that give back what went in."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from trilemma.cli.main import register_resolvers
from trilemma.cli.pack_shards import pack
from trilemma.config import CONF
from trilemma.datasets.image_folder import ImageFolder
from trilemma.datasets.webdataset import WebDataset
from trilemma.errors import UserError


@pytest.fixture
def composed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *given: compose("shards", ["paths.run_dir=run", "paths.cache_dir=cache", *given])


def write_images(root, kind):
    """A folder of 30 images, JPEG and PNG, of several sizes."""
    lines = []
    for i in range(30):
        pixels = torch.randint(256, (9 + i % 3, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        name = f"{i:02d}.{'JPG' if i % 2 else 'png'}"
        path = root / name if kind == "captions" else root / f"class {i % 3}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)
        lines.append(f'{{"file_name": "{name}", "text": "picture {i}"}}\n')
    if kind == "captions":
        (root / "metadata.jsonl").write_text("".join(lines))
    return root


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", "classes")


def folder_options(root, *more):
    return ["data=image_folder", f"data.root={root}", "data.size=8", "shard_size=4", "output_dir=out", *more]


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_what_was_packed_is_what_the_folder_gives(composed, kind, capsys, tmp_path):
    images = write_images(tmp_path / "images", kind)
    pack(composed(*folder_options(images)))
    said = capsys.readouterr().out
    assert "30 images in 9 shards" in said
    words = said.rpartition("train from them with  ")[2].split()
    options = {
        word.split("=")[0].lstrip('"').removeprefix("data."): word.split("=", 1)[1].strip("'\"") for word in words[1:]
    }
    composed_again = compose("shards", [*shlex.split(" ".join(words)), "output_dir=x"])  # as a shell hands it on
    assert all(composed_again.data[key] == value for key, value in options.items())
    common = {"size": 8, "batch_size": 2, "cache_dir": tmp_path / "cache"}
    packed, original = WebDataset(**options, **common), ImageFolder(root=images, **common)
    assert packed.label_names == original.label_names
    for name in ("train", "val", "test"):
        ours, theirs = packed.split(name), original.split(name)
        assert torch.equal(ours.images[:], theirs.images[:])
        assert ours.captions == theirs.captions
        assert (ours.labels is None) == (theirs.labels is None)
        assert ours.labels is None or torch.equal(ours.labels, theirs.labels)
    assert not list(Path("out").glob(".*"))


def test_the_same_command_goes_on_and_gives_the_same_bytes(composed, images):
    pack(composed(*folder_options(images)))
    before = content("out")
    Path("out/train-00003.tar").unlink()
    Path("out/val-00000.tar").unlink()
    pack(composed(*folder_options(images)))
    assert content("out") == before


def test_any_data_set_is_packed_as_it_is_seen(composed, images, tmp_path):
    from trilemma.datasets.mnist_5k import MNIST5k

    pack(composed("data=mnist_5k", "output_dir=out"))
    packed = WebDataset(
        shards="train-*.tar",
        val_shards="val-*.tar",
        test_shards="test-*.tar",
        root="out",
        cache_dir=tmp_path / "cache",
        size=28,
        channels=1,
    )
    original = MNIST5k()
    for name in ("val", "test"):
        assert torch.equal(packed.split(name).images[:], original.split(name).images)
        assert torch.equal(packed.split(name).labels, original.split(name).labels)
    assert len(packed.split("train")) == 4000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["shard_size=5"], r"out was begun with other images or another shard_size"),
        (["data.val_fraction=0.2"], r"out was begun with other images"),
        (["shard_size=0"], "shard_size=0: a number at least 1"),
        (["+typo=1"], "unknown override typo"),
        (["data.root=nowhere"], "nowhere: no such folder"),
        (["output_dir=out/train-00000.tar/x"], "cannot write to out/train-00000.tar/x"),
    ],
    ids=["shard_size", "fraction", "zero", "typo", "root", "elsewhere"],
)
def test_bad_input_is_one_line(composed, images, overrides, message):
    pack(composed(*folder_options(images)))
    before = content("out")
    with pytest.raises(UserError, match=message):
        pack(composed(*folder_options(images), *overrides))
    assert content("out") == before


def test_a_folder_with_shards_of_others_is_left_alone(composed, images):
    Path("out").mkdir()
    Path("out/train-00000.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="shards that this command did not write"):
        pack(composed(*folder_options(images)))
    assert content("out") == {"train-00000.tar": b"mine"}


def test_nothing_to_pack(composed):
    with pytest.raises(UserError, match="holds codes and no images"):
        pack(composed("data=tokens", "data.root=x", "output_dir=out"))
    with pytest.raises(UserError, match="nothing to pack: name a data set"):
        pack(composed("output_dir=out"))


def test_as_it_is_typed(composed, images, tmp_path):
    pack(composed(*folder_options(images)))
    command = [sys.executable, "-m", "trilemma.shards", *folder_options(images)]
    command[command.index("output_dir=out")] = "output_dir=two"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert content("two") == content("out")
