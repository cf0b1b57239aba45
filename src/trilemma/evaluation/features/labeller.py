"""The shipped classifiers as a judge of single images, for whoever watches training."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.data.base import ImageData
from trilemma.errors import UserError
from trilemma.evaluation.features.extractor import SHIPPED, Extractor, load_extractor
from trilemma.evaluation.features.stacked import StackedExtractor


class ShippedLabeller:
    """Says which class an image shows, for the data sets that a shipped extractor measures."""

    def __init__(self) -> None:
        self._loaded: dict[str, Extractor] = {}

    def num_classes(self, data: ImageData) -> int | None:
        """Number of classes, or None where no extractor is shipped for this data set at this size."""
        extractor = self._extractor(data)
        if extractor is None:
            return None
        try:
            extractor.check(torch.zeros(1, *data.image_shape, dtype=torch.uint8))
        except UserError:
            return None
        return extractor.num_classes

    def labels(self, data: ImageData, images: Tensor) -> Tensor:
        """Classes int64 [N], on the CPU, of images uint8 [N, C, H, W]; `num_classes` has said that there are any."""
        extractor = self._extractor(data)
        if extractor is None:
            raise ValueError(f"no extractor is shipped for {data.extractor_name}")
        return extractor.logits(images).argmax(1)

    def _extractor(self, data: ImageData) -> Extractor | None:
        name = data.extractor_name
        if name not in self._loaded:
            if not any(SHIPPED.glob(f"{name}-*.safetensors")):
                return None
            self._loaded[name] = load_extractor(name)
        return (
            StackedExtractor(self._loaded[name], data.image_shape[0])
            if data.channels_are_images
            else self._loaded[name]
        )
