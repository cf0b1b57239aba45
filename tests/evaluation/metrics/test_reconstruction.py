import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from trilemma.evaluation.metrics import reconstruction
from trilemma.evaluation.metrics.reconstruction import psnr, psnr_pooled, squared_errors, ssim


def noisy(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (7, 1, 16, 16), generator=generator)
    noise = torch.randint(-40, 41, images.shape, generator=generator) * torch.linspace(0.1, 1, 7).view(-1, 1, 1, 1)
    return images.to(torch.uint8), (images + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_by_hand():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    returned = torch.stack([torch.full((1, 2, 2), 51), torch.full((1, 2, 2), 255)]).to(torch.uint8)
    errors = squared_errors(images, returned)
    assert errors.tolist() == pytest.approx([0.04, 1.0], rel=1e-12)
    assert psnr(errors) == pytest.approx((-10 * math.log10(0.04) + 0.0) / 2, rel=1e-12)
    assert psnr_pooled(errors) == pytest.approx(-10 * math.log10(0.52), rel=1e-12)


def test_an_exact_copy_is_infinitely_good():
    images, _ = noisy(0)
    assert psnr(squared_errors(images, images)) == math.inf
    assert ssim(images, images) == pytest.approx(1.0, abs=1e-12)


def test_equal_to_torchmetrics_in_one_batch_and_in_many(monkeypatch):
    images, returned = noisy(1)
    monkeypatch.setattr(reconstruction, "CHUNK", 3)
    a, b = images.double() / 255, returned.double() / 255
    errors = squared_errors(images, returned)
    assert psnr_pooled(errors) == pytest.approx(float(PeakSignalNoiseRatio(data_range=1.0)(b, a)), rel=1e-6)
    each = PeakSignalNoiseRatio(data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert psnr(errors) == pytest.approx(float(each(b, a)), rel=1e-6)
    assert ssim(images, returned) == pytest.approx(
        float(StructuralSimilarityIndexMeasure(data_range=1.0)(b, a)), rel=1e-6
    )
    assert 0.1 < ssim(images, returned) < 0.99


def test_floats_are_refused():
    images, _ = noisy(2)
    with pytest.raises(TypeError, match="uint8"):
        squared_errors(images.float(), images)
    with pytest.raises(ValueError, match="one shape"):
        ssim(images, images[:3])
