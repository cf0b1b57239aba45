from collections.abc import Callable

import pytest
import torch

from trilemma.evaluation.features.card import ExtractorCard
from trilemma.evaluation.features.extractor import Extractor, load_extractor, save_extractor
from trilemma.networks.classifier import SmallConvNet

ARGUMENTS = {"in_channels": 1, "image_size": 8, "num_classes": 3, "channels": [4, 8], "feature_dim": 6}


@pytest.fixture
def network() -> SmallConvNet:
    torch.manual_seed(0)
    return SmallConvNet(**ARGUMENTS)


@pytest.fixture
def card() -> ExtractorCard:
    return ExtractorCard(
        network={"_target_": "trilemma.networks.classifier.SmallConvNet", **ARGUMENTS},
        dataset="toy_set",
        image_shape=(1, 8, 8),
        label_names=("a", "b", "c"),
        test_accuracy=0.5,
        command="python train.py experiment=toy/classifier",
    )


@pytest.fixture
def extractor(network, card, tmp_path) -> Extractor:
    return load_extractor(save_extractor(network, card, tmp_path / "extractors"))


@pytest.fixture
def random_images() -> Callable[..., torch.Tensor]:
    def draw(num: int, *, seed: int) -> torch.Tensor:
        """Smooth random pictures, whose features spread: uint8 [num, 1, 8, 8]."""
        coarse = torch.rand(num, 1, 3, 3, generator=torch.Generator().manual_seed(seed)) * 255
        return torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").round().to(torch.uint8)

    return draw


@pytest.fixture
def images(random_images) -> torch.Tensor:
    return random_images(40, seed=1)
