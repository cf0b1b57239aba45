"""An extractor of grey images for images that stack several of them as channels (stacked MNIST)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from trilemma.evaluation.features.base import Embedding, Extractor, Images


class StackedExtractor(Extractor):
    """Sees every channel by itself: features side by side, and a class for each combination of the channels' classes.

    Metz et al. 2017 (arXiv:1611.02163), section 3.3.1, count the modes of stacked MNIST like this. The combination's logits
    are the sums of the channels', so its most likely class is that of the most likely ones.

    Args:
        base: Of one channel, with logits over K classes.
        num_channels: C; there are K^C classes.
    """

    def __init__(self, base: Extractor, num_channels: int) -> None:
        names = tuple("".join(parts) for parts in itertools.product(base.label_names, repeat=num_channels))
        super().__init__(
            name=f"{base.name}x{num_channels}", label_names=names, device=base.device, batch_size=base.batch_size
        )
        self.base, self.num_channels = base, num_channels

    def check(self, images: Images) -> None:
        """Raise `UserError` unless the channels are images that the base reads."""
        self.base.check(images[:1].flatten(0, 1).unsqueeze(1))

    def see(self, batch: Tensor) -> Embedding:
        """Features [B, C d] and logits [B, K^C]."""
        seen = self.base.see(batch.flatten(0, 1).unsqueeze(1))
        features = seen.features.view(len(batch), -1)
        if seen.logits is None:
            return Embedding(features, None)
        first, *rest = seen.logits.view(len(batch), self.num_channels, -1).unbind(1)
        joint = first
        for logits in rest:
            joint = torch.add(joint[:, :, None], logits[:, None, :]).flatten(1)
        return Embedding(features, joint)
