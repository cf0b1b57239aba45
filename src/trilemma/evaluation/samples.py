"""Score samples, each number beside that of held-out real images in their place."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from trilemma.data.split import Split
from trilemma.errors import UserError
from trilemma.evaluation import NEAREST_K
from trilemma.evaluation.features.cache import cached_embed
from trilemma.evaluation.features.extractor import Embedding, Extractor, Images
from trilemma.evaluation.memorisation import Memorisation
from trilemma.evaluation.metrics.accuracy import label_accuracy
from trilemma.evaluation.metrics.fd_infinity import MAX_PARTS, fd_infinity
from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.histogram import class_counts, class_kl, class_total_variation, modes_hit
from trilemma.evaluation.metrics.jackknife import jackknife_stderr, share_stderr
from trilemma.evaluation.metrics.kid import Within, kid
from trilemma.evaluation.metrics.nearest import Neighbours
from trilemma.evaluation.metrics.order import content_order
from trilemma.evaluation.metrics.prdc import Balls, prdc

SHARES = ("precision", "recall", "coverage")  # each a share of images, of which there are n
MAX_SHARES = 100  # classes whose shares are told one by one
NUM_KERNEL = 10_000  # real images in the kernel distance, which takes all their pairs
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a model, and the same metrics of real images.

    Attributes:
        metrics: Metrics of the samples, by name.
        held_out_baseline: Metrics of held-out real images in the place of samples, which a perfect model reaches. Its
            `num_images` is their number.
        training_set_baseline: Metrics of as many images of the training set: a check of the metrics. A model that copies has
            a distance as low as the held-out baseline's, an authenticity of 0 and a C_T far below 0.
        neighbours: Nearest training image of each sample, by features.
        closeness: See `Memorisation.closeness`, [N].
    """

    metrics: dict[str, float]
    held_out_baseline: dict[str, float]
    training_set_baseline: dict[str, float] = field(default_factory=dict)
    neighbours: Neighbours | None = None
    closeness: Tensor | None = None


def evaluate_samples(
    samples: Images,
    labels: Tensor | None = None,
    *,
    real: Split,
    held_out: Split,
    extractor: Extractor | None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score quality and coverage of samples.

    `FD[<extractor>]` compares all samples with all real images; `FD_inf[...]` is its limit for infinitely many
    samples, left out where they are too few to extrapolate from. Precision, recall, density and coverage (k = 5)
    depend on the number of images, so all their sets are seeded subsets of one size n: that of the smallest of
    samples, held-out images and real images. The held-out baseline's distances are taken at n too. `KID[...]` is of all samples
    and 10,000 real images at most. `authenticity` is of all samples, `ct` of up to n of them and as many held-out images, half
    of those there are at most: the other half is its baseline. `precision_ratio` and `coverage_ratio` are over the
    held-out baseline's value. `*_stderr` are standard errors: that of the Frechet distance over the draw of samples, by leaving
    out tenths of them, and of its limit likewise,
    that of KID over the draws of both sets, those of shares binomial. What another training would
    change is in none of them. Class
    frequencies of samples are compared with those the extractor sees in the real images, so that its own errors are on
    both sides (`class_kl`, `class_tv`); `uniform_kl` is their divergence from the uniform distribution. With an extractor that
    has no logits they and `labels` are left out. The order of the samples has no part in any of it.

    Args:
        samples: uint8 [N, C, H, W].
        labels: Classes that the samples were to show, int64 [N]; None for unconditional samples.
        real: Reference: the whole training split.
        held_out: Held-out real images.
        extractor: Names every Frechet distance. Without one nothing but their number is known of the samples.
        cache_dir: Where features of real images are kept; None keeps none.
        seed: Of the subsets.

    Raises:
        UserError: If shapes or labels do not fit the extractor, or a set is too small.
    """
    if extractor is None:
        return Evaluation({"num_images": float(len(samples))}, {})
    num = min(len(samples), len(real), len(held_out))
    if num <= NEAREST_K:
        raise UserError(
            f"{len(samples)} samples, {len(real)} real and {len(held_out)} held-out images: "
            f"evaluation needs at least {NEAREST_K + 1} of each"
        )
    if num < len(samples):
        _log.warning(
            "only %d real images for %d samples: the floor and precision to coverage use %d", num, len(samples), num
        )
    seen = extractor.embed(samples)
    seen_real = cached_embed(extractor, real.images, cache_dir)
    seen_held_out = cached_embed(extractor, held_out.images, cache_dir)

    shuffled = _subset(len(held_out), len(held_out), seed + 1)
    rows = shuffled[:num]
    held_out_labels = None if held_out.labels is None else held_out.labels[rows]
    if held_out_labels is not None and int(held_out_labels.max()) >= extractor.num_classes:
        held_out_labels = None  # a data set with other classes than the extractor's
    # C_T's held-out images come from the other end of the shuffle: no image is compared with itself.
    others = shuffled[-min(num, len(held_out) // 2) :]
    memorisation = Memorisation(seen_real.features, seen_held_out.features[others], seed=seed)
    reference = _Reference(seen_real, memorisation, extractor, num=num, seed=seed)
    # Samples may come sorted by label or by batch, so their first n are no fair choice.
    fair = content_order(seen.features)[_subset(len(samples), len(samples), seed + 2)]
    metrics, neighbours = reference.scores(seen, labels, fair)
    held_out_baseline, _ = reference.scores(seen_held_out.rows(rows), held_out_labels, torch.arange(num))
    training_set_baseline, _ = reference.scores(seen_real.rows(reference.copies), None, torch.arange(num))
    for name in ("precision", "coverage"):
        # A baseline of 0 means balls of radius 0 (more than k copies of every image), where the ratio is undefined.
        best = held_out_baseline[name]
        metrics[f"{name}_ratio"] = metrics[name] / best if best else float("nan")
    return Evaluation(metrics, held_out_baseline, training_set_baseline, neighbours, memorisation.closeness(neighbours))


class _Reference:
    """Real images that sets of images are scored against."""

    def __init__(
        self, real: Embedding, memorisation: Memorisation, extractor: Extractor, *, num: int, seed: int
    ) -> None:
        self.extractor, self.memorisation, self.num, self.seed = extractor, memorisation, num, seed
        self.moments = Moments.of(real.features)
        shuffled = _subset(len(real.features), len(real.features), seed)
        self.balls, self.copies = Balls.of(real.features[shuffled[:num]], nearest_k=NEAREST_K), shuffled[-num:]
        self.kernel = Within.of(real.features[shuffled[:NUM_KERNEL]])
        self.counts = None if real.logits is None else class_counts(real.logits.argmax(dim=1), extractor.num_classes)

    def scores(self, seen: Embedding, labels: Tensor | None, fair: Tensor) -> tuple[dict[str, float], Neighbours]:
        """Scores of a set of images, and their nearest training images.

        Those scores that need n images take the first n of `fair`, int64 [N], an order that says nothing of the images.
        """
        features = seen.features
        shared = prdc(self.balls, features[fair[: self.num]], nearest_k=NEAREST_K)
        neighbours = self.memorisation.neighbours(features)
        scores = {
            "num_images": float(len(features)),
            **self._distances(features[fair]),
            **{name: getattr(shared, name) for name in ("precision", "recall", "density", "coverage")},
            **{f"{name}_stderr": share_stderr(getattr(shared, name), self.num) for name in SHARES},
            **self.memorisation.scores(features, neighbours, fair),
        }
        if seen.logits is not None:
            scores |= self._classes(seen.logits.argmax(dim=1), labels)
        return scores, neighbours

    def _classes(self, predicted: Tensor, labels: Tensor | None) -> dict[str, float]:
        """What the classes say that an extractor with logits saw, int64 [N]."""
        assert self.counts is not None
        counts = class_counts(predicted, self.extractor.num_classes)
        scores = {
            "modes_hit": float(modes_hit(counts)),
            "class_kl": class_kl(counts, self.counts),
            "class_tv": class_total_variation(counts, self.counts),
            "uniform_kl": class_kl(counts, torch.ones_like(counts), smoothing=0.0),
        }
        if labels is not None:
            scores["label_accuracy"] = label_accuracy(predicted, self._checked(labels, len(predicted)))
        if len(counts) > MAX_SHARES:
            return scores
        shares = counts.double() / len(predicted)
        names = self.extractor.label_names
        return scores | {f"class_share/{name}": float(share) for name, share in zip(names, shares, strict=True)}

    def _distances(self, features: Tensor) -> dict[str, float]:
        """Distances of features in a fair order."""
        name, kernel = self.extractor.name, kid(features, self.kernel)
        distances = {
            f"FD[{name}]": frechet_distance(features, self.moments),
            f"FD_stderr[{name}]": jackknife_stderr(lambda some: frechet_distance(some, self.moments), features),
        }
        if len(features) // MAX_PARTS > features.shape[1]:  # with fewer, the curve in 1/N bends
            limit = fd_infinity(features, self.moments, seed=self.seed)
            distances[f"FD_inf[{name}]"] = limit.value
            if limit.stderr is not None:
                distances[f"FD_inf_stderr[{name}]"] = limit.stderr
        return distances | {f"KID[{name}]": kernel.value, f"KID_stderr[{name}]": kernel.stderr}

    def _checked(self, labels: Tensor, num: int) -> Tensor:
        if labels.shape != (num,):
            raise UserError(f"need one label a sample, got labels {list(labels.shape)} for {num} samples")
        if not (int(labels.min()) >= 0 and int(labels.max()) < self.extractor.num_classes):
            raise UserError(f"labels {int(labels.min())}..{int(labels.max())} are not classes of {self.extractor.name}")
        return labels


def _subset(num_all: int, num: int, seed: int) -> Tensor:
    """`num` different positions below `num_all`, int64 [num]."""
    return torch.randperm(num_all, generator=torch.Generator().manual_seed(seed))[:num]
