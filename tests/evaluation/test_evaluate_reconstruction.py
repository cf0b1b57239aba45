import math

import pytest
import torch
from torch import Tensor

from trilemma.codecs.base import Codec
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.evaluation.metrics.frechet import frechet_distance
from trilemma.evaluation.reconstruction import evaluate_reconstruction


class Quantised(Codec):
    """Pixels to four levels: tokens 0, 1 and 3 are used, 2 never is."""

    def __init__(self) -> None:
        super().__init__()
        self.image_shape, self.code_shape, self.num_classes = (1, 8, 8), (8, 8), 4

    def encode(self, images: Tensor, noise=None) -> Tensor:
        level = ((images[:, 0] + 1) * 2).long().clamp(0, 3)
        return torch.where(level == 2, 3, level)

    def decode(self, code: Tensor) -> Tensor:
        return ((code + 0.5) / 2 - 1)[:, None]


class Model:
    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.codec.decode(self.codec.encode(images))


class Copies:
    def reconstruct(self, images: Tensor) -> Tensor:
        return images


def test_numbers_are_those_of_the_metrics(extractor, images):
    codec = Quantised()
    scores = evaluate_reconstruction(Model(codec), images, extractor=extractor, codec=codec, batch_size=7)
    returned = ((codec.decode(codec.encode(to_float(images))) + 1) * 127.5).round().to(torch.uint8)
    error = ((images.double() - returned.double()) / 255).square().flatten(1).mean(1)
    assert scores["psnr_pooled"] == pytest.approx(-10 * math.log10(error.mean()), rel=1e-9)
    assert scores["psnr"] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-9)
    assert scores["psnr"] > scores["psnr_pooled"]
    expected = frechet_distance(extractor.features(images), extractor.features(returned))
    assert scores[f"rFD[{extractor.name}]"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert scores["codebook_usage"] == 0.75
    assert scores["codebook_dead"] == 1
    counts = torch.bincount(codec.encode(to_float(images)).flatten(), minlength=4).double()
    p = counts[counts > 0] / counts.sum()
    assert scores["codebook_perplexity"] == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-5)


def test_a_copy_is_perfect_and_has_no_codebook(extractor, images):
    scores = evaluate_reconstruction(Copies(), images, extractor=extractor)
    assert scores["psnr"] == math.inf
    assert scores["ssim"] == pytest.approx(1.0, abs=1e-12)
    assert scores[f"rFD[{extractor.name}]"] == pytest.approx(0.0, abs=1e-7)
    assert not any(name.startswith("codebook") for name in scores)


def test_batches_change_nothing(extractor, images):
    model = Model(Quantised())
    one, many = (evaluate_reconstruction(model, images, extractor=extractor, batch_size=size) for size in (40, 3))
    assert one == many


def test_one_image_is_refused(extractor, images):
    with pytest.raises(UserError, match="at least 2"):
        evaluate_reconstruction(Copies(), images[:1], extractor=extractor)
