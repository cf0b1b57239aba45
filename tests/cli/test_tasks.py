"""The pictures that `sample.py task=...` draws, of a model whose network is exact."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import open_dict
from PIL import Image

from exact_family import MEANS, STD, exact_family
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.cli import pictures as tasks
from trilemma.cli import sample as command
from trilemma.cli import samples
from trilemma.cli.main import register_resolvers
from trilemma.cli.pictures import pairs_of
from trilemma.config import CONF
from trilemma.data.base import ImageData
from trilemma.data.images import to_uint8
from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.models.classifier import Classifier

SIZE = 4 * 4 + 2  # an image and its margin
SAMPLER = {"_target_": "trilemma.samplers.gaussian.ddim.DDIM", "num_steps": 20}
GUIDANCE = {"_target_": "trilemma.samplers.guidance.Guidance"}


class Greys(ImageData):
    """Test images that vary about their label's mean, in the order 2, 1, 0, 2, 1, 0, ..."""

    name = "greys"

    def read(self):
        labels = 2 - torch.arange(60) % 3
        pattern = STD * torch.linspace(-2, 2, 16).view(1, 1, 4, 4)
        images = to_uint8(torch.tensor(MEANS)[labels].view(-1, 1, 1, 1) + pattern)
        split = Split(images, labels, None, torch.arange(60))
        return dict.fromkeys(("train", "val", "test"), split), None


@pytest.fixture
def draw(monkeypatch, tmp_path, capsys):
    """draw("task=forward", labels=True) -> what was printed; files lie below tmp_path."""
    register_resolvers()
    monkeypatch.setattr(tasks, "data_of", lambda config, root: Greys(batch_size=8))
    monkeypatch.setattr(command, "check_archive", lambda path: None)

    def call(*overrides, labels=True, family=None):
        model = family or exact_family(labels=labels)
        config = {"sampler": SAMPLER, "guidance": GUIDANCE, "weights": "ema"}
        monkeypatch.setattr(samples, "load_model", lambda cfg, ckpt: LoadedModel(Path(ckpt), model, config))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("sample", overrides=[f"ckpt={tmp_path}/run/checkpoints/last.ckpt", *overrides])
        with open_dict(cfg):
            cfg.pop("hydra", None)
        command.sample(cfg)
        return capsys.readouterr().out

    return call


def the(folder, pattern):
    [path] = folder.rglob(pattern)
    return path


def tile(path, *, row, column, num_rows, num_columns):
    """The mean of one image of a picture, on [-1, 1]; labels stand at its left and above it."""
    pixels = np.asarray(Image.open(path).convert("L")).astype(float) / 127.5 - 1
    y = pixels.shape[0] - (num_rows - row) * SIZE
    x = pixels.shape[1] - (num_columns - column) * SIZE
    return pixels[y : y + SIZE - 2, x : x + SIZE - 2].mean()


def test_forward(draw, tmp_path):
    out = draw("task=forward", "num_images=2")
    path = the(tmp_path, "forward.png")
    assert path.parent.parent == tmp_path / "run/samples"
    assert path.parent.name.startswith("forward-n2-")
    assert re.fullmatch(r"forward: \S+/forward\.png\n", out)
    assert tile(path, row=0, column=0, num_rows=2, num_columns=11) == pytest.approx(MEANS[2], abs=0.01)
    assert tile(path, row=1, column=0, num_rows=2, num_columns=11) == pytest.approx(MEANS[1], abs=0.01)


def test_reverse_draws_the_strip_and_the_animation(draw, tmp_path):
    out = draw("task=reverse", "num_images=4", "condition.label=[2,0]")
    path = the(tmp_path, "reverse.png")
    assert out == f"reverse: {os.path.relpath(path)}, {os.path.relpath(path.with_suffix('.gif'))}\n"
    last = [tile(path, row=row, column=10, num_rows=6, num_columns=11) for row in (0, 2, 4)]
    assert last == pytest.approx([MEANS[2], MEANS[0], MEANS[2]], abs=0.1)
    with Image.open(path.with_suffix(".gif")) as animation:
        assert animation.n_frames == 21


@pytest.mark.parametrize(
    ("condition", "means"),
    [((), MEANS[::-1]), (("condition.label=0",), [MEANS[0]] * 3), (("condition.label=none",), [0.0] * 3)],
)
def test_denoise_keeps_the_images_label_or_takes_another(draw, tmp_path, condition, means):
    draw("task=denoise", "strength=0.95", "num_images=3", *condition)
    path = the(tmp_path, "denoise.png")
    data = [tile(path, row=0, column=i, num_rows=2, num_columns=3) for i in range(3)]
    found = [tile(path, row=1, column=i, num_rows=2, num_columns=3) for i in range(3)]
    assert data == pytest.approx(MEANS[::-1], abs=0.01)
    assert found == pytest.approx(means, abs=0.15)
    assert json.loads((path.parent / "settings.json").read_text())["strength"] == [0.95]


def test_denoise_has_a_row_a_strength(draw, tmp_path):
    draw("task=denoise", "strength=[0.1,0.5,1]", "num_images=2", labels=False)
    with Image.open(the(tmp_path, "denoise.png")) as picture:
        assert picture.height == 4 * SIZE + 2


@pytest.mark.parametrize("labels", [True, False])
def test_invert_says_how_well_images_come_back(draw, tmp_path, labels):
    psnr = []
    for num_steps in (20, 200):
        out = draw("task=invert", f"sampler.num_steps={num_steps}", "num_images=3", labels=labels)
        found = re.fullmatch(
            rf"invert: (\S+) \(back at ([\d.]+|inf) dB after {num_steps} \+ {num_steps} steps\)\n", out
        )
        psnr.append(float(found[2]))
    assert psnr[1] > psnr[0] > 15
    path = tmp_path / "run/samples"
    assert len(list(path.iterdir())) == 2
    assert json.loads(next(iter(path.glob("*steps200*/settings.json"))).read_text())["sampler"]["num_steps"] == 200


def test_interpolation_stays_within_a_class(draw, tmp_path):
    out = draw("task=interpolate", "num_images=3", "sampler.num_steps=100")
    assert "dB" in out
    path = the(tmp_path, "interpolate.png")
    for row, mean in enumerate(MEANS):
        found = [tile(path, row=row, column=i, num_rows=3, num_columns=9) for i in range(9)]
        assert found == pytest.approx([mean] * 9, abs=0.15)
        assert found[0] == pytest.approx(mean, abs=0.01)
        assert found[8] == pytest.approx(mean, abs=0.01)


def test_interpolation_without_labels_takes_images_as_they_come(draw, tmp_path):
    draw("task=interpolate", "num_images=1", "sampler.num_steps=100", "condition.label=none")
    path = the(tmp_path, "interpolate.png")
    found = [tile(path, row=0, column=i, num_rows=1, num_columns=9) for i in (0, 8)]
    assert found == pytest.approx([MEANS[2], MEANS[1]], abs=0.01)


def test_pairs():
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
    assert pairs_of(labels, None, 3).tolist() == [[0, 3], [1, 4], [2, 5]]
    assert pairs_of(labels, [1, 0, 1], 3).tolist() == [[1, 3], [0, 2], [4, 7]]
    with pytest.raises(UserError, match="class 1"):
        pairs_of(labels, [1, 1, 1], 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=denoize"], "did you mean denoise"),
        (["task=nothing"], "choose one of samples, forward"),
        (["task=denoise", "strength=0"], r"strength=0: .*\(0, 1\]"),
        (["task=denoise", "strength=[0.5,1.5]"], "strength=1.5"),
        (["task=denoise", "strength=[]"], "empty"),
        (["task=denoise", "strength=null"], "strength=None"),
        (["task=denoise", "strength=much"], "strength=much"),
        (["task=denoise", "strength=true"], "strength=True"),
        (["task=forward", "num_images=61"], "needs 61 test images, and the data set has 60"),
        (["task=interpolate", "num_images=31"], "needs 62 test images"),
        (["task=interpolate", "num_images=20", "condition.label=1"], "test images of class 1"),
        (["task=reverse", "condition.label=3"], "condition.label=3"),
        (["task=denoise", "condition.label=3"], "condition.label=3"),
    ],
)
def test_refuses_before_anything_is_written(draw, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        draw(*overrides)
    assert list(tmp_path.rglob("*.*")) == []


def test_refuses_a_family_that_has_no_trajectory(draw, tmp_path):
    with pytest.raises(UserError, match="holds a Classifier, which draws no images"):
        draw("task=reverse", family=Classifier.__new__(Classifier))
    assert list(tmp_path.rglob("*.*")) == []
