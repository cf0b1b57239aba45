"""From images to a number: an independent implementation with the same extractor finds the same distance."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from trilemma.data.split import Split
from trilemma.evaluation.features.extractor import Extractor
from trilemma.evaluation.samples import evaluate_samples


class AsModule(nn.Module):
    """An extractor in the form that torchmetrics takes, in the double precision that it does not widen to."""

    num_features = 6

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extract = extractor.features

    def forward(self, images: Tensor) -> Tensor:
        return self.extract(images).double()


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all:UserWarning")
def test_distances_are_those_of_torchmetrics(extractor, random_images):
    real, held_out, samples = (random_images(60, seed=seed) for seed in (1, 2, 3))
    samples = (samples * 0.8).to(torch.uint8)
    splits = [Split(images=x, labels=None, captions=None, index=torch.arange(60)) for x in (real, held_out)]
    found = evaluate_samples(samples, real=splits[0], held_out=splits[1], extractor=extractor)
    module = AsModule(extractor)
    frechet = FrechetInceptionDistance(module)
    kernel = KernelInceptionDistance(module, subsets=1, subset_size=60)
    for metric in (frechet, kernel):
        metric.update(real, real=True)
        metric.update(samples, real=False)
    assert found.metrics[f"FD[{extractor.name}]"] == pytest.approx(float(frechet.compute()), rel=1e-4)
    assert found.metrics[f"KID[{extractor.name}]"] == pytest.approx(float(kernel.compute()[0]), rel=1e-4)
