"""Evaluate a classifier: score it, and write its network as a feature extractor where it can be one."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trilemma.capabilities import supports
from trilemma.checkpoints.loaded import LoadedModel
from trilemma.data.batch import Batch
from trilemma.data.images import to_float
from trilemma.data.split import StoredImages
from trilemma.errors import UserError
from trilemma.evaluation.features.card import ExtractorCard
from trilemma.evaluation.features.extractor import save_extractor
from trilemma.models.capabilities import Classifies

_BATCH_SIZE = 500


class Classification(NamedTuple):
    """How a test set was classified.

    Attributes:
        accuracy: Share of the images whose most likely label is right.
        cross_entropy: In nats an image.
    """

    accuracy: float
    cross_entropy: float


def evaluate_classifier(loaded: LoadedModel, folder: Path, *, device: str, seed: int = 0) -> None:
    """Print test accuracy and cross-entropy under each condition of the family, and write the extractor that `extractor=PATH` takes.

    Args:
        loaded: A family that `Classifies`, and its data.
        folder: Where the extractor goes, if the family has a feature network.
        device: Where the model lies.
        seed: Of the noise of noisy images.

    Raises:
        UserError: If the data have no labels.
    """
    model, data = loaded.model, loaded.data
    assert supports(model, Classifies)
    test = data.split("test")
    if test.labels is None or data.label_names is None:
        raise UserError("the data has no labels: there is nothing to classify")
    scores = classify(model, test.images, test.labels, torch.device(device), seed=seed)
    print(f"{len(test)} test images")
    for condition, score in scores.items():
        print(f"{condition}: accuracy {score.accuracy:.4f}, cross-entropy {score.cross_entropy:.4f} nats")
    network = model.feature_network()
    if network is None:
        return
    card = ExtractorCard(
        dataset=data.extractor_name,
        network=loaded.config["model"]["network"],
        image_shape=data.image_shape,
        label_names=tuple(data.label_names),
        test_accuracy=next(iter(scores.values())).accuracy,
        command=f"python train.py experiment={loaded.config['experiment']}",
    )
    print(f"as a feature extractor: {save_extractor(network, card, folder)}")


def classify(
    model: Classifies, images: Tensor | StoredImages, labels: Tensor, device: torch.device, *, seed: int = 0
) -> dict[str, Classification]:
    """Score uint8 images [N, C, H, W] with labels int64 [N] under each condition of a family."""
    right: dict[str, int] = defaultdict(int)
    nats: dict[str, float] = defaultdict(float)
    for start in range(0, len(labels), _BATCH_SIZE):
        label = labels[start : start + _BATCH_SIZE].to(device)
        image = to_float(images[start : start + _BATCH_SIZE]).to(device)
        batch = Batch(image=image, label=label, index=torch.arange(start, start + len(label)))
        for condition, score in model.score_labels(batch, seed=seed).items():
            right[condition] += int(score.right.sum())
            nats[condition] += float(score.nats.double().sum())
    return {name: Classification(right[name] / len(labels), nats[name] / len(labels)) for name in right}
