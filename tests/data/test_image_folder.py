import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.data import decode as decode_module
from trilemma.data.decode import Decoding, decode
from trilemma.datasets.image_folder import ImageFolder, list_images
from trilemma.distributed import signals
from trilemma.errors import Stopped, UserError

COLOURS = [(20 * i, 10, 200 - 10 * i) for i in range(10)]


def save(path, colour=(10, 20, 30), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Options of a data set over tmp_path/images."""

    def make(**options):
        defaults = {"root": tmp_path / "images", "cache_dir": tmp_path / "cache", "size": 4, "batch_size": 2}
        return ImageFolder(**defaults | {"val_fraction": 0.2, "test_fraction": 0.2} | options)

    return make


def everything(data):
    splits = [data.split(name) for name in ("train", "val", "test")]
    order = torch.cat([split.index for split in splits]).argsort()
    return torch.cat([split.images[:] for split in splits])[order], splits, order


def test_class_folders_give_labels(folder, tmp_path):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "images" / ("cat" if i < 5 else "dog/deep") / f"{i}.png", colour)
    save(tmp_path / "images" / ".hidden" / "x.png")
    (tmp_path / "images" / "empty").mkdir()
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    data = folder()
    images, splits, order = everything(data)
    assert (data.image_shape, data.num_labels, data.label_names) == ((3, 4, 4), 2, ["cat", "dog"])
    assert type(data).declared({"channels": 3, "size": 4}).image_shape == data.image_shape
    assert [len(split) for split in splits] == [6, 2, 2]
    assert torch.cat([split.labels for split in splits])[order].tolist() == [0] * 5 + [1] * 5
    assert images[:, :, 0, 0].tolist() == [list(colour) for colour in COLOURS]
    assert sorted(data.split("val").labels.tolist()) == [0, 1]


@pytest.mark.parametrize("key", ["text", "caption"])
def test_metadata_give_captions(folder, tmp_path, key):
    lines = []
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "images" / "sub" / f"{i}.png", colour)
        lines.append(json.dumps({"file_name": f"sub/{i}.png", key: f"colour {i}", "other": 1}))
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    data = folder()
    for name in ("train", "val", "test"):
        split = data.split(name)
        assert split.captions == [f"colour {i}" for i in split.index]
        assert split.images[:][:, 0, 0, 0].tolist() == [COLOURS[i][0] for i in split.index]
    assert data.num_labels is None
    batch = next(iter(data.train_dataloader()))
    assert batch["caption"] == [f"colour {i}" for i in batch["index"]]
    assert "label" not in batch


def test_a_flat_folder_has_neither(folder, tmp_path):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "images" / f"{i}.PNG", colour)
    data = folder(flip=True)
    assert (data.num_labels, data.split("train").captions) == (None, None)
    assert set(next(iter(data.train_dataloader()))) == {"image", "index"}


def test_images_are_decoded_once_unless_something_changes(folder, tmp_path, monkeypatch):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "images" / f"{i}.png", colour)
    calls = []
    monkeypatch.setattr(decode_module, "decode", lambda path, how: calls.append(path) or decode(path, how))
    first = folder().fingerprint
    assert folder(split_seed=3, seed=1, batch_size=1).split("train") is not None
    assert folder().fingerprint == first
    assert len(calls) == 10
    assert folder(split_seed=3).fingerprint != first
    folder(size=5).setup()
    assert len(calls) == 20
    save(tmp_path / "images" / "3.png", (1, 2, 3))
    os.utime(tmp_path / "images" / "3.png", ns=(1, 1))
    assert folder().fingerprint != first
    assert len(calls) == 30


def test_a_corrupt_image_is_named_and_leaves_no_cache(folder, tmp_path):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "images" / f"{i}.png", colour)
    path = tmp_path / "images" / "7.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=rf"{path}: cannot be read as an image .*; fix or remove it") as caught:
        folder().setup()
    assert "\n" not in str(caught.value)
    assert [entry for entry in (tmp_path / "cache").iterdir() if not entry.name.endswith(".lock")] == []
    path.unlink()
    folder().setup()


def test_a_damaged_cache_is_named(folder, tmp_path):
    for i, colour in enumerate(COLOURS):
        save(tmp_path / "images" / f"{i}.png", colour)
    folder().setup()
    (cache,) = (tmp_path / "cache").glob("images-*")
    os.truncate(cache / "images.npy", 200)
    with pytest.raises(UserError, match=rf"{cache}: the cache is damaged .*; delete the folder"):
        folder().setup()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("{", r"line 1: not JSON"),
        ('{"file_name": "0.png", "text": "x"}\n[1]', r"line 2: not an object"),
        ('{"file_name": "0.png"}', r'line 1: "file_name" and "text"'),
        ('{"file_name": "none.png", "text": "x"}', r"line 1: none\.png does not exist"),
        ("\n", "names no images"),
    ],
)
def test_wrong_metadata_are_named(folder, tmp_path, metadata, reason):
    save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "metadata.jsonl").write_text(metadata)
    with pytest.raises(UserError, match=rf"metadata\.jsonl.*{reason}"):
        folder().setup()


def test_folders_of_no_known_layout_are_named(folder, tmp_path):
    root = tmp_path / "images"
    with pytest.raises(UserError, match=rf"{root}: no such folder; set data\.root"):
        folder().setup()
    root.mkdir()
    with pytest.raises(UserError, match=rf"{root}: no images .*set data\.root"):
        folder().setup()
    save(root / "a.png")
    with pytest.raises(UserError, match=rf"{root}: 1 images are too few"):
        folder().setup()
    save(root / "class" / "b.png")
    with pytest.raises(UserError, match=rf"{root}: images beside class folders \(a\.png, class/\)"):
        folder().setup()


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"channels": 2}, {"resize": "pad"}, {"val_fraction": -0.1}, {"test_fraction": 0.9}]
)
def test_arguments_are_checked(folder, wrong):
    with pytest.raises(UserError, match=rf"data\.{next(iter(wrong))}"):
        folder(**wrong)


def test_crop_takes_the_central_square_and_stretch_the_whole(tmp_path):
    image = np.zeros((10, 30, 3), dtype=np.uint8)
    image[:, 10:20] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", Decoding(5, 1, "crop")).tolist() == [[[255] * 5] * 5]
    stretched = decode(tmp_path / "a.png", Decoding(10, 1, "stretch"))
    assert stretched.shape == (1, 10, 10)
    assert stretched[0, 0, 0] == 0
    assert 70 < stretched.mean() < 100


def test_shrinking_is_antialiased(tmp_path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    small = decode(tmp_path / "a.png", Decoding(8, 1, "crop")).astype(int)
    assert np.all(np.abs(small - 127.5) < 10)


def test_an_image_of_the_right_size_is_left_alone(tmp_path):
    image = np.random.default_rng(0).integers(256, size=(6, 6, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", Decoding(6, 3, "crop")), image.transpose(2, 0, 1))


def test_modes_become_what_was_asked_for(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.all(decode(tmp_path / "clear.png", Decoding(4, 3, "crop")) == 255)
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert np.all(decode(tmp_path / "grey.png", Decoding(4, 3, "crop")) == 77)
    Image.new("P", (4, 4)).save(tmp_path / "palette.gif")
    assert decode(tmp_path / "palette.gif", Decoding(4, 3, "crop")).shape == (3, 4, 4)
    Image.new("I;16", (4, 4), 40_000).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png: more than 8 bits"):
        decode(tmp_path / "deep.png", Decoding(4, 3, "crop"))


def test_the_exif_orientation_is_obeyed(tmp_path):
    image = Image.fromarray(np.array([[0, 0], [255, 255]], dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "a.png", exif=exif)
    assert decode(tmp_path / "a.png", Decoding(2, 1, "crop")).tolist() == [[[255, 255], [0, 0]]]


def test_hidden_folders_are_left_out_links_are_followed_and_all_is_said(folder, tmp_path, capsys):
    images = tmp_path / "images"
    for i in range(5):
        save(images / "cat" / f"{i}.png")
        save(tmp_path / "elsewhere" / f"{i}.png")
    save(images / "cat" / ".ipynb_checkpoints" / "0.png")
    (images / "dog").mkdir()
    (images / "dog" / "batch1").symlink_to(tmp_path / "elsewhere")
    (images / "dog" / "loop").symlink_to(images / "dog")
    (images / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (images / "cat" / "notes.txt").touch()
    data = folder()
    data.setup()
    assert sum(len(data.split(name)) for name in ("train", "val", "test")) == 10
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(str(images)))
    assert line == (
        f"{images}: 10 images of 2 classes; left out: 1 hidden (.ipynb_checkpoints), 1 no images by their names (notes.txt), "
        "1 links that lead nowhere (gone.png), 1 links to a folder that they lie in (loop)"
    )


def test_what_does_not_fit_the_disk_is_one_line_before_anything_is_decoded(folder, tmp_path, monkeypatch):
    for i in range(5):
        save(tmp_path / "images" / f"{i}.png")
    monkeypatch.setattr(decode_module, "decode", None)
    with pytest.raises(UserError, match=r"the decoded images take 150 GB, and .* GB are free in .*data\.size"):
        folder(size=100_000).setup()
    assert not list((tmp_path / "cache").glob("images-*"))


def test_decoding_stops_when_it_is_asked_to(folder, tmp_path, monkeypatch):
    for i in range(5):
        save(tmp_path / "images" / f"{i}.png")
    monkeypatch.setattr(signals, "asked", lambda: 75)
    with pytest.raises(Stopped):
        folder().setup()
    assert not list((tmp_path / "cache").glob("images-*"))


def metadata(tmp_path, content, names=("a.png", "b.png", "c.png")):
    for name in names:
        save(tmp_path / "images" / name)
    (tmp_path / "images" / "metadata.jsonl").write_bytes(content)


def line_of(name, text="x"):
    return json.dumps({"file_name": name, "text": text}, ensure_ascii=False).encode()


def test_metadata_may_have_a_mark_and_any_character_of_json(folder, tmp_path, capsys):
    lines = [line_of("a.png", "one\u2028line"), line_of(str(tmp_path / "images/b.png"), "\x85"), line_of("c.png", "é")]
    metadata(tmp_path, b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n")
    save(tmp_path / "images" / "unnamed.png")
    listing = folder().listing()
    assert listing.captions == ["one\u2028line", "\x85", "é"]
    assert listing.summary() == "3 images; left out: 1 not named there (unnamed.png)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            line_of("a.png") + b"\n" + line_of("b.png", "\xe9t\xe9").decode().encode("latin-1"),
            r"line 2: not UTF-8 \(byte 0xe9\)",
        ),
        (line_of("a.png") + b"\n" + line_of("./a.png"), r"line 2: \./a\.png is named by line 1 too"),
        (line_of("a" * 300 + ".png"), "line 1: a{100} does not exist"),
        (line_of("a\0.png"), "line 1: .* does not exist"),
    ],
    ids=["latin-1", "twice", "long name", "null"],
)
def test_metadata_that_cannot_be_taken_are_one_line(folder, tmp_path, content, message):
    metadata(tmp_path, content)
    with pytest.raises(UserError, match=message) as error:
        folder().listing()
    assert "\n" not in str(error.value)


def exif_of(orientation, *, broken):
    """An EXIF block with an orientation, and one malformed tag: XResolution as a single UNDEFINED byte."""
    entries = [(0x0112, 3, 1, orientation << 16 if broken == "big" else orientation)]
    body = b"II*\0" + (8).to_bytes(4, "little") + (2).to_bytes(2, "little")
    body += (
        (0x0112).to_bytes(2, "little")
        + (3).to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + entries[0][3].to_bytes(4, "little")
    )
    body += (
        (0x011A).to_bytes(2, "little")
        + (7).to_bytes(2, "little")
        + (1).to_bytes(4, "little")
        + b"\x01\0\0\0"
        + bytes(4)
    )
    return b"Exif\0\0" + body


def test_one_malformed_tag_costs_neither_the_picture_nor_its_turn(tmp_path):
    picture = Image.new("L", (8, 8))
    picture.putpixel((0, 0), 255)
    picture = picture.resize((64, 64), Image.Resampling.NEAREST)
    picture.save(tmp_path / "a.jpg", exif=exif_of(6, broken=""), quality=95)
    turned = decode(tmp_path / "a.jpg", Decoding(8, 1, "stretch"))
    assert turned[0, 0, 7] > 200  # the upper left corner came to the upper right


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd blocks, yet reads them
def test_no_exif_block_costs_a_picture(tmp_path):
    """4,000 blocks with random bytes changed."""
    rng = np.random.default_rng(0)
    good = exif_of(6, broken="")
    for _ in range(4000):
        block = bytearray(good)
        for place in rng.integers(6, len(block), size=rng.integers(1, 8)):
            block[place] = rng.integers(256)
        Image.new("L", (4, 4)).save(tmp_path / "a.jpg", exif=bytes(block))
        assert decode(tmp_path / "a.jpg", Decoding(4, 1, "stretch")).shape == (1, 4, 4)


@pytest.mark.slow
def test_any_tree_is_listed_or_refused_and_nothing_is_dropped_in_silence(tmp_path):
    """1,000 random trees: images taken and entries left out are all there are, or it is one line."""
    rng = np.random.default_rng(0)
    names, lines = ["a.png", "b.PNG", ".hidden.png", "notes.txt", "x.jpg"], []
    for number in range(1000):
        root = tmp_path / str(number)
        root.mkdir()
        folders = [root]
        for i in range(rng.integers(1, 8)):
            parent = folders[rng.integers(len(folders))]
            kind = rng.integers(4)
            if kind == 0:
                below = parent / rng.choice([f"d{i}", f".d{i}"])
                below.mkdir(exist_ok=True)
                folders.append(below)
            elif kind == 1:
                (parent / f"link{i}").symlink_to(folders[rng.integers(len(folders))])
            else:
                (parent / rng.choice(names)).touch()
        try:
            listing = list_images(root)
        except UserError as error:
            lines.append(str(error))
            continue
        assert len(set(listing.paths)) == len(listing.paths)
        assert not any(part.startswith(".") for path in listing.paths for part in path.relative_to(root).parts)
        left = {path for paths in listing.left_out.values() for path in paths}
        for path in root.rglob("*"):
            covered = path in left or path in listing.paths or any(above in left for above in path.parents)
            assert covered or path.is_dir(), path
    assert not any("\n" in line for line in lines)
