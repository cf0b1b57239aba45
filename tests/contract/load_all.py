"""Load checkpoints, all in this process, and do with each what its family can: python load_all.py CHECKPOINT ...

One line of JSON a checkpoint says what was done, or how it failed.
"""

import json
import math
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import trilemma
from trilemma.capabilities import supports
from trilemma.data.batch import Batch
from trilemma.models.base import Family
from trilemma.models.capabilities import Classifies, Reconstructs, Samples, ScoresLikelihood

_NUM_IMAGES = 3


def main(paths: list[str]) -> None:
    for path in paths:
        try:
            report: dict[str, Any] = {"done": exercise(Path(path))}
        except Exception:
            report = {"failed": traceback.format_exc()}
        print(json.dumps({"checkpoint": path, **report}), flush=True)


def exercise(path: Path) -> list[str]:
    """Names of the capabilities that a checkpoint's model has, each of which was put to use."""
    model = trilemma.load(path)
    facts = model.config["facts"]
    shape = tuple(facts["image_shape"])
    batch = some_batch(model, shape, facts["num_labels"], 2)
    done = []
    if supports(model, Reconstructs):
        check_images(model.reconstruct(batch["image"]), (2, *shape))
        done.append("reconstructs")
    if supports(model, ScoresLikelihood):
        score = model.score_likelihood(some_batch(model, shape, facts["num_labels"], 1))
        assert score.nats.shape == (1,), score.nats.shape
        assert score.nats.isfinite().all(), score.nats
        assert score.kind in ("exact", "bound", "estimate"), score.kind
        assert score.num_dims >= 1, score.num_dims
        done.append("scores likelihood")
    if supports(model, Classifies):
        for condition, score in model.score_labels(batch).items():
            assert score.right.dtype == torch.bool, condition
            assert score.right.shape == score.nats.shape == (2,), condition
            assert score.nats.isfinite().all(), condition
        done.append("classifies")
    if supports(model, Samples):
        raw = model.examples(_NUM_IMAGES)
        check_images(model.sample(_NUM_IMAGES, condition=raw, seed=1), (_NUM_IMAGES, *shape))
        check_batch_sizes(model, raw)
        done.append("samples")
    return done


def some_batch(model: Family, shape: tuple[int, ...], num_labels: int | None, num: int) -> Batch:
    """Random images with whatever a data set may give beside them."""
    generator = torch.Generator().manual_seed(0)
    # Of 256 levels, as all images are.
    image = torch.randint(0, 256, (num, *shape), generator=generator) / 127.5 - 1.0
    batch = Batch(image=image, index=torch.arange(num), row=torch.arange(num))
    if num_labels is not None:
        batch["label"] = torch.arange(num) % num_labels
    raw = model.examples(num) if supports(model, Samples) else None
    if raw is not None and isinstance(raw[0], str):
        batch["caption"] = raw
    return batch


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Images as they are everywhere in the program."""
    assert tuple(images.shape) == shape, tuple(images.shape)
    assert images.isfinite().all(), "not all pixels are finite"
    assert images.min() >= -1.0, images.min()
    assert images.max() <= 1.0, images.max()


def check_batch_sizes(model: Family, raw: list[Any] | None) -> None:
    """Image i of a seed is the same in a batch of three and in batches of two and one; in float64, where sums in another order agree."""
    assert supports(model, Samples)
    model.double()
    together = model.sample(_NUM_IMAGES, condition=raw, seed=1)
    parts = [
        model.sample(stop - start, condition=None if raw is None else raw[start:stop], seed=1, first_index=start)
        for start, stop in ((0, 2), (2, _NUM_IMAGES))
    ]
    error = float((together - torch.cat(parts)).abs().max())
    assert math.isfinite(error), error
    assert error < 1e-5, f"images drawn in other batch sizes differ by {error}"


if __name__ == "__main__":
    main(sys.argv[1:])
