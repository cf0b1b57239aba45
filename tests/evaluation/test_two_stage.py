import math

import pytest
import torch

from trilemma.codecs.pixels import PixelLevels, Pixels
from trilemma.data.base import ImageData
from trilemma.data.images import to_float
from trilemma.data.split import Split
from trilemma.evaluation.samples import evaluate_samples
from trilemma.evaluation.two_stage import code_bits, oracle_prior, prior_bits


class Toy(ImageData):
    name = "toy_set"

    def __init__(self, splits):
        super().__init__(batch_size=4)
        self.splits = splits

    def read(self):
        return self.splits, None


class Through:
    """A first stage that gives back what `change` makes of an image."""

    def __init__(self, change):
        self.change = change

    def reconstruct(self, images):
        return self.change(images)


@pytest.fixture
def data(random_images):
    splits = {
        name: Split(images=random_images(num, seed=seed), labels=None, captions=None, index=torch.arange(num))
        for name, num, seed in (("train", 120, 2), ("val", 10, 3), ("test", 60, 4))
    }
    toy = Toy(splits)
    toy.setup()
    return toy


def test_a_lossless_codec_with_a_perfect_prior_scores_as_real_images(data, extractor):
    scores = oracle_prior(Through(lambda x: x), data, extractor, num_images=60)
    direct = evaluate_samples(
        data.split("test").images, real=data.split("train"), held_out=data.split("test"), extractor=extractor
    )
    assert scores[f"FD[{extractor.name}]"] == pytest.approx(direct.metrics[f"FD[{extractor.name}]"], rel=1e-9)
    assert scores["coverage"] == direct.metrics["coverage"]
    assert scores["coverage_ratio"] == 1.0
    assert "authenticity" not in scores


def test_a_codec_that_loses_everything_cannot_be_saved_by_its_prior(data, extractor):
    grey = oracle_prior(Through(torch.zeros_like), data, extractor, num_images=40)
    assert grey["num_images"] == 40
    assert grey["recall"] == 0
    whole = oracle_prior(Through(lambda x: x), data, extractor, num_images=40)
    assert grey[f"FD[{extractor.name}]"] > whole[f"FD[{extractor.name}]"]


def test_what_is_decoded_is_held_out_and_goes_through_whole_batches(data, extractor):
    seen = []
    oracle_prior(Through(lambda x: (seen.append(x), x)[1]), data, extractor, num_images=60, batch_size=25)
    assert [len(part) for part in seen] == [25, 25, 10]
    test = to_float(data.split("test").images).flatten(1)
    assert torch.equal(torch.cat(seen).flatten(1).sum(1).sort().values, test.sum(1).sort().values)


def test_bits():
    levels = PixelLevels(image_shape=(1, 4, 4), num_classes=8)
    assert code_bits(levels) == 16 * 3
    assert code_bits(Pixels(image_shape=(1, 4, 4))) is None
    score = {"nats_per_image": 10 * math.log(2), "unit": "token"}
    assert prior_bits(score) == pytest.approx(10)
    assert prior_bits(score | {"unit": "subpixel"}) is None
    assert prior_bits(None) is None
