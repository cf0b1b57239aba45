"""Feature maps of our extractors, as a perceptual loss compares them."""

from __future__ import annotations

from torch import Tensor, nn

from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import ClassifierExtractor, load_extractor
from trilemma.networks.classifier import FeatureClassifier
from trilemma.training.perceptual import FeatureMaps


class ExtractorMaps(FeatureMaps):
    """The stages of a shipped extractor, or of one of your own.

    A Frechet distance on the same extractor then flatters what was trained with it: say so, or measure with another one.

    Args:
        source: A data set (`mnist`), a shipped extractor by its full name, or the path of a file that experiment=*/classifier wrote.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source

    def load(self) -> nn.Module:
        """See `FeatureMaps`."""
        extractor = load_extractor(self.source)
        if not isinstance(extractor, ClassifierExtractor):
            raise UserError(
                f"{self.source} gives no feature maps: name an extractor that experiment=*/classifier wrote"
            )
        self._num_channels = extractor.card.image_shape[0]
        return extractor.network

    def check(self, num_channels: int) -> None:
        """See `FeatureMaps`."""
        super().check(num_channels)
        if self._num_channels != num_channels:
            raise UserError(
                f"extractor {self.source} reads images of {self._num_channels} channels, and data gives {num_channels}: name another one, "
                "or take model/reconstruction=absolute"
            )

    def maps(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """See `FeatureMaps`."""
        assert isinstance(network, FeatureClassifier)
        return network.feature_maps(images)
