"""What `evaluate.py` does with a classifier: its accuracy, and of one of clean images the file that makes it a feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trilemma.checkpoints.loaded import LoadedModel
from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.evaluation.features.card import ExtractorCard
from trilemma.evaluation.features.extractor import save_extractor
from trilemma.models.classifier import Classifier
from trilemma.models.noisy_classifier import NoisyClassifier
from trilemma.networks.classifier import FeatureClassifier
from trilemma.processes.noise import Noise

NOISE_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
_BATCH_SIZE = 500


def evaluate_classifier(subject: LoadedModel, folder: Path, *, device: str) -> None:
    """Test accuracy, and the network written as a feature extractor that `extractor=PATH` takes."""
    model, data = subject.model, subject.data
    assert isinstance(model, Classifier)
    test = data.split("test")
    if test.labels is None or data.label_names is None:
        raise UserError("the data has no labels: there is nothing to classify")
    accuracy = test_accuracy(model, test.images, test.labels, torch.device(device))
    network = model.network
    if not isinstance(network, FeatureClassifier):
        print(
            f"test accuracy {accuracy:.4f} on {len(test)} images; {type(network).__name__} has no features to extract"
        )
        return
    card = ExtractorCard(
        dataset=data.extractor_name,
        network=subject.config["model"]["network"],
        image_shape=data.image_shape,
        label_names=tuple(data.label_names),
        test_accuracy=accuracy,
        command=f"python train.py experiment={subject.config['experiment']}",
    )
    path = save_extractor(network, card, folder)
    print(f"test accuracy {accuracy:.4f} on {len(test)} images; as a feature extractor: {path}")


@torch.no_grad()
def test_accuracy(model: Classifier, images: Any, labels: Tensor, device: torch.device) -> float:
    """Share of uint8 images [N, C, H, W] whose most likely label is right."""
    right = 0
    for start in range(0, len(labels), _BATCH_SIZE):
        logits = model.network(to_float(images[start : start + _BATCH_SIZE]).to(device))
        right += int((logits.argmax(1).cpu() == labels[start : start + _BATCH_SIZE]).sum())
    return right / len(labels)


def evaluate_noisy_classifier(subject: LoadedModel, *, device: str, seed: int) -> None:
    """Print test accuracy and cross-entropy at a few noise levels.

    Raises:
        UserError: If the data have no labels.
    """
    model, data = subject.model, subject.data
    assert isinstance(model, NoisyClassifier)
    test = data.split("test")
    if test.labels is None:
        raise UserError("the data has no labels: there is nothing to classify")
    print(f"{len(test)} test images")
    for t in NOISE_LEVELS:
        accuracy, nats = noisy_accuracy(model, test.images, test.labels, t, torch.device(device), seed=seed)
        print(f"t = {t}: accuracy {accuracy:.4f}, cross-entropy {nats:.4f} nats")


@torch.no_grad()
def noisy_accuracy(
    model: NoisyClassifier, images: Any, labels: Tensor, t: float, device: torch.device, *, seed: int = 0
) -> tuple[float, float]:
    """Share of uint8 images [N, C, H, W] whose most likely label is right at noise level t, and the cross-entropy in nats."""
    right, nats = 0, 0.0
    for start in range(0, len(labels), _BATCH_SIZE):
        label = labels[start : start + _BATCH_SIZE].to(device)
        noise = Noise(seed, torch.arange(start, start + len(label)), device)
        x0 = model.codec.encode(to_float(images[start : start + _BATCH_SIZE]).to(device), noise)
        time = torch.full((len(label),), t, dtype=torch.float64, device=device)
        logits = model.logits(model.process.sample(x0, time, noise), time)
        right += int((logits.argmax(1) == label).sum())
        nats += float(F.cross_entropy(logits, label, reduction="sum"))
    return right / len(labels), nats / len(labels)
