"""An extractor whose batches are dealt to all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from trilemma.checkpoints.loaded import LoadedModel
from trilemma.data.base import SplitName
from trilemma.distributed.ranks import Ranks
from trilemma.evaluation.features.extractor import Embedding, Extractor, Images
from trilemma.measuring.blocks import embed_block

_SPLITS: tuple[SplitName, ...] = ("train", "test")


def extractor_of(loaded: LoadedModel, ranks: Ranks) -> Extractor:
    """The extractor that scores a model; of several processes, one that all of them run."""
    return loaded.extractor if ranks.size == 1 else DistributedExtractor(loaded, ranks)


class DistributedExtractor(Extractor):
    """Embeds with the help of the others, each batch as one process would form it: so with its features, bit for bit.

    Args:
        loaded: Whose extractor, which every process has.
        ranks: The processes.
    """

    def __init__(self, loaded: LoadedModel, ranks: Ranks) -> None:
        base = loaded.extractor
        super().__init__(name=base.name, label_names=base.label_names, device=base.device, batch_size=base.batch_size)
        self._loaded, self._ranks = loaded, ranks

    def check(self, images: Images) -> None:
        """As the model's own extractor."""
        self._loaded.extractor.check(images)

    def see(self, batch: Tensor) -> Embedding:
        """As the model's own extractor, in this process."""
        return self._loaded.extractor.see(batch)

    def embed(self, images: Images) -> Embedding:
        """As the model's own extractor; images of the data set are read by each process, others are sent."""
        self.accept(images)
        number, data = self._loaded.number, self._loaded.data
        split = next((name for name in _SPLITS if data.split(name).images is images), None)
        rows = images[:] if split is None else None
        parts = self._ranks.map(embed_block, len(images), number, split, block=self.batch_size, rows=rows)
        logits = [part.logits for part in parts if part.logits is not None]
        return Embedding(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)
