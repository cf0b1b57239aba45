"""What `evaluate.py` does with a classifier: its accuracy, and the file that makes it a feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trilemma.data.images import to_float
from trilemma.errors import UserError
from trilemma.evaluation.card import ExtractorCard
from trilemma.evaluation.extractor import save_extractor
from trilemma.models.classifier import Classifier
from trilemma.networks.classifier import FeatureClassifier
from trilemma.runs.subject import Subject


def evaluate_classifier(subject: Subject, folder: Path, *, device: str) -> None:
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
    for start in range(0, len(labels), 500):
        logits = model.network(to_float(images[start : start + 500]).to(device))
        right += int((logits.argmax(1).cpu() == labels[start : start + 500]).sum())
    return right / len(labels)
