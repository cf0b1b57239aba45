"""Classifier: the feature extractor that quality is measured with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trilemma.data.batch import Batch
from trilemma.models.base import Family, Loss, OptimizerFactory, SchedulerFactory
from trilemma.models.capabilities import LabelScore
from trilemma.networks.classifier import FeatureClassifier
from trilemma.processes.noise import NoiseSource


class Classifier(Family):
    """Cross-entropy with label smoothing on randomly shifted (and mirrored) images.

    Args:
        network: images [B, C, H, W] -> logits [B, num_labels].
        max_shift: Images are shifted by up to so many pixels each way, edges repeated.
        mirror: Mirror half of the images left to right.
        label_smoothing: Share of the target spread over all classes.
        optimizer: See `Family`.
        scheduler: See `Family`.
    """

    monitor = ("val/accuracy", "max")

    def __init__(
        self,
        *,
        network: nn.Module,
        max_shift: int = 2,
        mirror: bool = False,
        label_smoothing: float = 0.05,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__(optimizer=optimizer, scheduler=scheduler)
        self.network = network
        self.max_shift, self.mirror, self.label_smoothing = max_shift, mirror, label_smoothing

    def loss(self, batch: Batch) -> Loss:
        """Compute the cross-entropy in nats."""
        logits = self.network(self._augment(batch["image"], self.training_noise()))
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        return Loss(loss, {"accuracy": accuracy})

    def _augment(self, images: Tensor, noise: NoiseSource) -> Tensor:
        """Shift each image independently, by a gather over padded rows and columns."""
        num, _, height, width = images.shape
        if self.mirror:
            flip = noise.uniform((num,)) < 0.5
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        if self.max_shift == 0:
            return images
        shift = (noise.uniform((num, 2)) * (2 * self.max_shift + 1)).long() - self.max_shift
        rows = (torch.arange(height, device=images.device) + shift[:, :1]).clamp(0, height - 1)
        columns = (torch.arange(width, device=images.device) + shift[:, 1:]).clamp(0, width - 1)
        batch = torch.arange(num, device=images.device)[:, None, None]
        return images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log accuracy and cross-entropy."""
        logits = self.network(batch["image"])
        size = len(logits)
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        self.log("val/accuracy", accuracy, batch_size=size, sync_dist=True, prog_bar=True)
        self.log("val/cross_entropy", F.cross_entropy(logits, batch["label"]), batch_size=size, sync_dist=True)

    @torch.no_grad()
    def score_labels(self, batch: Batch, *, seed: int = 0) -> dict[str, LabelScore]:
        """See `Classifies`: of clean images."""
        logits = self.network(batch["image"])
        nats = F.cross_entropy(logits, batch["label"], reduction="none")
        return {"clean images": LabelScore(logits.argmax(1) == batch["label"], nats)}

    def feature_network(self) -> FeatureClassifier | None:
        """See `Classifies`."""
        return self.network if isinstance(self.network, FeatureClassifier) else None
