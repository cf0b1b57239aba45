"""An extractor whose batches are distributed over all processes."""

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
    """Get the extractor that scores a model; with several processes, one that all of them run."""
    return loaded.extractor if ranks.size == 1 else DistributedExtractor(loaded, ranks)


class DistributedExtractor(Extractor):
    """Embeds batches on all processes; batches are those of one process, so the features are equal bit for bit.

    Args:
        loaded: The checkpoint whose extractor is used; every process has loaded it.
        ranks: The processes.
    """

    def __init__(self, loaded: LoadedModel, ranks: Ranks) -> None:
        base = loaded.extractor
        super().__init__(name=base.name, label_names=base.label_names, device=base.device, batch_size=base.batch_size)
        self._loaded, self._ranks = loaded, ranks

    def check(self, images: Images) -> None:
        """See `Extractor`; as the model's own."""
        self._loaded.extractor.check(images)

    def see(self, batch: Tensor) -> Embedding:
        """See `Extractor`; as the model's own, in this process."""
        return self._loaded.extractor.see(batch)

    def embed(self, images: Images) -> Embedding:
        """See `Extractor`; images of the data set are read by each process, others are sent."""
        self.accept(images)
        number, data = self._loaded.number, self._loaded.data
        split = next((name for name in _SPLITS if data.split(name).images is images), None)
        rows = images[:] if split is None else None
        parts = self._ranks.map(embed_block, len(images), number, split, block=self.batch_size, rows=rows)
        logits = [part.logits for part in parts if part.logits is not None]
        return Embedding(torch.cat([part.features for part in parts]), torch.cat(logits) if logits else None)
