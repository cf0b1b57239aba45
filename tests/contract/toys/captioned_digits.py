"""Digits with a caption each."""

from __future__ import annotations

from dataclasses import replace

from trilemma.data.base import Split, SplitName
from trilemma.datasets.mnist_5k import MNIST5k

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class CaptionedDigits(MNIST5k):
    """The digits of `MNIST5k`, labelled and captioned: "a seven", "an eight"."""

    name = "toy_captions"

    def read(self) -> tuple[dict[SplitName, Split], list[str]]:
        """See `ImageData`."""
        splits, names = super().read()
        return {name: replace(split, captions=_captions(split)) for name, split in splits.items()}, names


def _captions(split: Split) -> list[str]:
    assert split.labels is not None
    words = [_NAMES[label] for label in split.labels.tolist()]
    return [f"{'an' if word == 'eight' else 'a'} {word}" for word in words]
