import numpy as np
import pytest
import torch
from PIL import Image

from trilemma.errors import UserError
from trilemma.figures.images import make_grid, save_gif, save_png, save_samples_npz, to_pil


def levels(num: int, channels: int = 1, side: int = 4) -> torch.Tensor:
    """Image i is of one level, 10 i."""
    return (10 * torch.arange(num)).view(-1, 1, 1, 1).expand(num, channels, side, side).to(torch.uint8)


def test_pictures_keep_every_pixel():
    grey = torch.arange(12).view(1, 1, 3, 4).to(torch.uint8)
    (picture,) = to_pil(grey)
    assert (picture.mode, picture.size) == ("L", (4, 3))
    assert np.array_equal(np.asarray(picture), grey[0, 0].numpy())
    colour = torch.arange(24).view(1, 3, 2, 4).to(torch.uint8)
    (picture,) = to_pil(colour)
    assert (picture.mode, picture.size) == ("RGB", (4, 2))
    assert np.array_equal(np.asarray(picture), colour[0].permute(1, 2, 0).numpy())


def test_floats_are_rounded_and_clipped():
    (picture,) = to_pil(torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 5))
    assert np.asarray(picture).tolist() == [[0, 0, 128, 255, 255]]


def test_a_grid_has_each_image_in_its_place():
    grid = np.asarray(make_grid(levels(5)[:, :, :, :3], 3, padding=2, scale=1))  # 4 high, 3 wide
    assert grid.shape == (2 * 4 + 3 * 2, 3 * 3 + 4 * 2)
    expected = np.full_like(grid, 255)
    for i in range(5):
        top, left = 2 + (i // 3) * 6, 2 + (i % 3) * 5
        expected[top : top + 4, left : left + 3] = 10 * i
    assert np.array_equal(grid, expected)


def test_enlarging_repeats_pixels():
    image = torch.tensor([[0, 50], [100, 150]], dtype=torch.uint8).view(1, 1, 2, 2)
    grid = np.asarray(make_grid(image, 1, padding=0, scale=3))
    assert np.array_equal(grid, np.kron(image[0, 0].numpy(), np.ones((3, 3), dtype=np.uint8)))


@pytest.mark.parametrize(("side", "scale"), [(8, 4), (14, 4), (28, 2), (32, 2), (33, 1), (256, 1)])
def test_small_images_are_enlarged_by_default(side, scale):
    assert make_grid(levels(1, side=side), 1, padding=0).size == (side * scale, side * scale)


@pytest.mark.parametrize("channels", [1, 3])
def test_labels_stand_beside_an_unchanged_grid(channels):
    images = levels(4, channels, side=20)
    bare = np.asarray(make_grid(images, 2, scale=1))
    labelled = np.asarray(make_grid(images, 2, scale=1, row_labels=["one", "a longer one"], column_labels=["x", "y"]))
    height, width = bare.shape[:2]
    assert labelled.shape[0] > height
    assert labelled.shape[1] > width
    assert np.array_equal(labelled[-height:, -width:], bare)
    left, top = labelled[-height:, :-width], labelled[:-height, -width:]
    # Ink in the margin of each row and above each column, and none that is cut off at the border.
    for margin in (left[: height // 2], left[height // 2 :], top[:, : width // 2], top[:, width // 2 :]):
        assert margin.min() < 128
    assert left[:, 0].min() == top[0].min() == 255


def test_impossible_grids_are_refused():
    with pytest.raises(ValueError, match="needs images"):
        make_grid(levels(0), 2)
    with pytest.raises(ValueError, match="num_columns=0"):
        make_grid(levels(2), 0)
    with pytest.raises(ValueError, match="3 row labels for 2 rows"):
        make_grid(levels(4), 2, row_labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="C = 1 or 3"):
        to_pil(levels(1, channels=2))


def test_png_is_lossless(tmp_path):
    grid = make_grid(levels(3), 2)
    save_png(grid, tmp_path / "new" / "grid.png")
    with Image.open(tmp_path / "new" / "grid.png") as read:
        assert np.array_equal(np.asarray(read), np.asarray(grid))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_png(grid, tmp_path / "file" / "grid.png")


def test_npz_has_the_convention_of_the_field(tmp_path):
    images = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).to(torch.uint8)
    save_samples_npz(tmp_path / "samples.npz", images, torch.tensor([7, 1]))
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as read:
        assert read.files == ["arr_0", "arr_1"]
        assert read["arr_0"].dtype == np.uint8
        assert np.array_equal(read["arr_0"], images.permute(0, 2, 3, 1).numpy())
        assert read["arr_1"].tolist() == [7, 1]
    save_samples_npz(tmp_path / "samples.npz", images)
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as read:
        assert read.files == ["arr_0"]


def test_npz_refuses_what_the_field_would_misread(tmp_path):
    with pytest.raises(ValueError, match="uint8"):
        save_samples_npz(tmp_path / "x.npz", torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="labels"):
        save_samples_npz(tmp_path / "x.npz", levels(3), torch.tensor([1]))
    assert not list(tmp_path.iterdir())


def test_animations_run_for_ever_and_hold_their_end(tmp_path):
    frames = [Image.new("L", (6, 4), 40 * i) for i in range(4)]
    save_gif(frames, tmp_path / "new" / "walk.gif", frame_ms=50, hold_ms=700)
    with Image.open(tmp_path / "new" / "walk.gif") as found:
        assert found.n_frames == 4
        assert found.info["loop"] == 0
        for i in range(4):
            found.seek(i)
            assert found.info["duration"] == (700 if i == 3 else 50)
            assert np.asarray(found.convert("L")).tolist() == [[40 * i] * 6] * 4


def test_colours_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (3, 3), tone) for tone in ((250, 10, 10), (10, 10, 250))]
    save_gif(frames, tmp_path / "walk.gif")
    with Image.open(tmp_path / "walk.gif") as found:
        found.seek(1)
        assert found.convert("RGB").getpixel((1, 1)) == (10, 10, 250)


def test_an_animation_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        save_gif([], tmp_path / "walk.gif")
    assert list(tmp_path.iterdir()) == []
