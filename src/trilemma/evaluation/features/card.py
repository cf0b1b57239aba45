"""What a file of extractor weights says about itself, and the network it names."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
from dataclasses import dataclass
from typing import Any

from trilemma.errors import UserError
from trilemma.networks.classifier import FeatureClassifier

_PACKAGE = "trilemma.networks"


@dataclass(frozen=True)
class ExtractorCard:
    """Metadata of an extractor, kept in its weights file.

    Attributes:
        network: `_target_` (a class of `trilemma.networks` by full name) and its keyword arguments.
        dataset: What it was trained on, in lower-case letters, digits and underscores.
        image_shape: (C, H, W) it reads; no image is ever resized for it.
        label_names: Names of its classes, in order.
        test_accuracy: Share of the test split that it labels rightly.
        command: What trained it.
    """

    network: dict[str, Any]
    dataset: str
    image_shape: tuple[int, int, int]
    label_names: tuple[str, ...]
    test_accuracy: float
    command: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.dataset):
            raise ValueError(f"data set names have lower-case letters, digits and underscores, got {self.dataset!r}")

    def to_json(self) -> str:
        """One line, keys in order, so that equal cards are equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> ExtractorCard:
        """Inverse of `to_json`.

        Raises:
            ValueError: If a field is missing, unknown or of the wrong kind.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or set(fields) != {f.name for f in dataclasses.fields(ExtractorCard)}:
            raise ValueError("its metadata does not have an extractor's fields")
        if not isinstance(fields["network"], dict) or len(fields["image_shape"]) != 3:
            raise ValueError("its metadata does not describe a network and an image shape")
        channels, height, width = fields.pop("image_shape")
        label_names = tuple(str(name) for name in fields.pop("label_names"))
        return ExtractorCard(image_shape=(channels, height, width), label_names=label_names, **fields)


def build_network(config: dict[str, Any]) -> FeatureClassifier:
    """Build the network that a card names.

    A weights file may come from a stranger, so it may name only feature classifiers that are defined in
    `trilemma.networks`.

    Args:
        config: `_target_` and keyword arguments, all plain values.

    Raises:
        UserError: If the target is anything else, or does not take the arguments.
    """
    arguments = dict(config)
    target = arguments.pop("_target_", None)
    if not isinstance(target, str) or not re.fullmatch(rf"{re.escape(_PACKAGE)}(\.\w+)+", target):
        raise UserError(f"an extractor's network must be a class of {_PACKAGE}, not {target!r}")
    module_name, _, class_name = target.rpartition(".")
    try:
        network_class = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise UserError(f"this version of trilemma has no {module_name}, which the extractor names") from error
    # The defining module counts: `trilemma.networks.x.torch` is within the prefix, and not ours.
    if not isinstance(network_class, type) or not f"{network_class.__module__}.".startswith(f"{_PACKAGE}."):
        raise UserError(f"{target} is not a class of {_PACKAGE}")
    if not issubclass(network_class, FeatureClassifier):
        raise UserError(f"{target} gives no features: an extractor is a FeatureClassifier")
    try:
        return network_class(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{target} does not take the extractor's arguments: {error}") from error
