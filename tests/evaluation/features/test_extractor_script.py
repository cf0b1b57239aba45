import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from trilemma.data.images import to_float
from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.evaluation.features.cache import cached_embed
from trilemma.evaluation.features.extractor import load_extractor
from trilemma.evaluation.features.script import ScriptExtractor
from trilemma.evaluation.features.script_card import ScriptCard
from trilemma.evaluation.metrics.frechet import frechet_distance
from trilemma.evaluation.samples import evaluate_samples


class Pixels(nn.Module):
    """Its input, flattened."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).float()


class Levels(nn.Module):
    """Takes uint8 and an argument, as Inception of StyleGAN's authors does; gives [B, d, 1, 1]."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        if not return_features or x.dtype != torch.uint8:
            raise ValueError("no features asked for")
        return x.flatten(1).float()[:, :, None, None]


class Two(nn.Module):
    """Features and logits by name."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.dropout = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = nn.functional.adaptive_avg_pool2d(x[:, :1], (2, 3)).flatten(1)
        return {"pool": self.dropout(pooled), "out": self.head(pooled)}


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1).float(), x.flatten(1)[:, :2].float()


@pytest.fixture
def written(tmp_path):
    def write(module: nn.Module, name: str = "net", **card: object):
        path = tmp_path / f"{name}.pt"
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
            torch.jit.script(module).save(path)
        path.with_name(f"{name}.pt.json").write_text(json.dumps(card))
        return path

    return write


CLASSES = {"features": "pool", "logits": "out", "label_names": ["a", "b", "c"]}


def test_native_images_arrive_as_they_are(written, images):
    path = written(Pixels(), channels=1)
    torch.testing.assert_close(load_extractor(path).features(images), to_float(images).flatten(1))
    path = written(Pixels(), channels=1, range=[0, 1], mean=[0.5], std=[0.25])
    torch.testing.assert_close(load_extractor(path).features(images), ((images / 255 - 0.5) / 0.25).flatten(1))


def test_grey_images_are_repeated(written, images):
    extractor = load_extractor(written(Pixels(), range=[0, 255]))
    assert torch.equal(extractor.features(images), images.float().repeat(1, 3, 1, 1).flatten(1))
    colour = images.repeat(1, 3, 1, 1)
    assert torch.equal(extractor.features(colour), extractor.features(images))


@pytest.mark.parametrize("size", [5, 21])
def test_resizing_is_that_of_pillow(written, random_images, size):
    images = random_images(4, seed=0)
    found = load_extractor(written(Pixels(), channels=1, resize=size, range=[0, 255])).features(images)
    pictures = [Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BICUBIC) for image in images]
    expected = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).flatten(1).float()
    assert (found - expected).abs().max() <= 1  # Pillow rounds between its two passes
    floats = load_extractor(written(Pixels(), channels=1, resize=size, range=[0, 255], quantise=False)).features(images)
    precise = [Image.fromarray(i[0].numpy().astype(np.float32)).resize((size, size), Image.BICUBIC) for i in images]
    torch.testing.assert_close(floats, torch.from_numpy(np.stack(precise)).flatten(1), atol=1e-3, rtol=0)
    assert torch.equal(found, floats.round().clamp(0, 255))


def test_levels_and_arguments_are_passed(written, images):
    extractor = load_extractor(
        written(Levels(), channels=1, input="uint8", range=[0, 255], arguments={"return_features": True})
    )
    assert torch.equal(extractor.features(images), images.flatten(1).float())


def test_outputs_are_found_by_key_and_position(written, images):
    extractor = load_extractor(written(Two(), **CLASSES))
    seen = extractor.embed(images)
    assert (seen.features.shape, seen.logits.shape) == ((len(images), 6), (len(images), 3))
    torch.testing.assert_close(extractor.module.head(seen.features), seen.logits)  # in eval mode: nothing is dropped
    second = load_extractor(written(Pair(), channels=1, features=1)).features(images)
    torch.testing.assert_close(second, to_float(images).flatten(1)[:, :2])


def test_features_do_not_depend_on_company(written, images):
    extractor = load_extractor(written(Two(), **CLASSES))
    whole = extractor.embed(images)
    for size in (1, 7):
        parts = [extractor.embed(chunk) for chunk in images.split(size)]
        assert torch.equal(torch.cat([part.features for part in parts]), whole.features)
        assert torch.equal(torch.cat([part.logits for part in parts]), whole.logits)


def test_the_name_holds_the_file_and_what_the_card_says(written):
    name = load_extractor(written(Pixels(), "my.net", channels=1)).name
    assert name.startswith("my.net-")
    assert len(name) == len("my.net-") + 8
    # A default that is written out changes nothing, another value does.
    assert load_extractor(written(Pixels(), "my.net", range=[-1, 1], channels=1)).name == name
    assert load_extractor(written(Pixels(), "my.net", channels=3)).name != name
    assert load_extractor(written(Pair(), "my.net", channels=1, features=0)).name != name


def test_without_logits_nothing_is_said_of_classes(written, random_images):
    extractor = load_extractor(written(Pixels(), channels=1, resize=2))
    real, held_out, samples = (random_images(n, seed=s) for n, s in ((60, 1), (40, 2), (30, 3)))
    labels = torch.zeros(len(samples), dtype=torch.int64)
    splits = [Split(images=x, labels=None, captions=None, index=torch.arange(len(x))) for x in (real, held_out)]
    found = evaluate_samples(samples, labels, real=splits[0], held_out=splits[1], extractor=extractor)
    expected = frechet_distance(extractor.features(samples), extractor.features(real))
    assert found.metrics[f"FD[{extractor.name}]"] == pytest.approx(expected, rel=1e-9)
    for scores in (found.metrics, found.held_out_baseline, found.training_set_baseline):
        assert not [n for n in scores if n.startswith(("class", "modes", "label"))]
        assert all(math.isfinite(value) for value in scores.values())
    with pytest.raises(UserError, match="sees no classes"):
        extractor.logits(samples)


def test_features_without_logits_are_kept(written, images, tmp_path, monkeypatch):
    extractor = load_extractor(written(Pixels(), channels=1))
    first = cached_embed(extractor, images, tmp_path / "cache")
    monkeypatch.setattr(extractor, "embed", lambda images: pytest.fail("embedded again"))
    second = cached_embed(extractor, images, tmp_path / "cache")
    assert torch.equal(first.features, second.features)
    assert first.logits is second.logits is None


@pytest.mark.parametrize(
    ("module", "card", "words"),
    [
        (Pair(), {}, "gives a tuple of 2 where features"),
        (Pair(), {"features": 2}, "gives no features at 2, but a tuple of 2"),
        (Two(), {"features": "pol"}, "gives no features at 'pol', but a dict of 'pool', 'out'"),
        (Two(), CLASSES | {"label_names": ["a"]}, "gives 3 logits for 1 label_names"),
        (Levels(), {}, "cannot read .* no features asked for; fix its card"),
    ],
)
def test_an_output_that_is_not_there_is_one_line(written, images, module, card, words):
    extractor = load_extractor(written(module, **card))
    with pytest.raises(UserError, match=words):
        extractor.features(images)


def test_colour_for_a_grey_network_is_refused(written, images):
    with pytest.raises(UserError, match=r"1 channel\(s\), got \[\d+, 3, 8, 8\]"):
        load_extractor(written(Pixels(), channels=1)).features(images.repeat(1, 3, 1, 1))


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"rezise": 3}, "unknown field rezise: did you mean resize"),
        ({"resize": "big"}, 'resize="big" is of the wrong kind'),
        ({"resize": 0}, "resize=0 must be at least 1"),
        ({"channels": 2}, "channels=2"),
        ({"channels": True}, "channels=true is of the wrong kind"),
        ({"input": "int8"}, "choose one of uint8, float32"),
        ({"range": [1]}, "range="),
        ({"mean": [0.5]}, "mean has 1 values for 3 channels"),
        ({"std": [0, 1, 1]}, "std must be above 0"),
        ({"input": "uint8"}, "takes range"),
        ({"input": "uint8", "range": [0, 255], "quantise": False}, "needs quantise=true"),
        ({"logits": 1}, "belong together"),
        ([], "JSON object"),
    ],
)
def test_a_card_that_cannot_be_meant_is_refused(card, words):
    with pytest.raises(ValueError, match=words):
        ScriptCard.from_json(json.dumps(card))


def test_files_that_are_missing_or_something_else(written, tmp_path):
    with pytest.raises(UserError, match="cannot read the extractor"):
        load_extractor(tmp_path / "nothing.pt")
    path = written(Pixels(), resize="big")
    with pytest.raises(UserError, match=r"net\.pt\.json cannot be used: resize"):
        load_extractor(path)
    path.with_name("net.pt.json").unlink()
    with pytest.raises(UserError, match=r"cannot read the card .*net\.pt\.json"):
        load_extractor(path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "state.pth")
    (tmp_path / "state.pth.json").write_text("{}")
    with pytest.raises(UserError, match="no TorchScript file"):
        load_extractor(tmp_path / "state.pth")


def test_a_script_is_an_extractor_like_any(written):
    extractor = load_extractor(written(Pixels()))
    assert isinstance(extractor, ScriptExtractor)
    assert (extractor.num_classes, extractor.label_names) == (0, ())
