"""Our metrics beside independent implementations, on MNIST features; and how long a whole evaluation takes.

    python benchmarks/metrics.py --root data/mnist

The first table gives each number twice, with the relative difference. The second part scores 10,000 images, the test
images moved by a pixel, against the 60,000 training images with every metric over
features: features of real images are cached before, those of the samples are extracted within.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch loads

import argparse
import contextlib
import io
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator

import numpy as np
import prdc as prdc_package
import scipy.linalg
import scipy.stats
import sklearn.metrics
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from trilemma.data.split import Split
from trilemma.datasets.mnist import MNIST
from trilemma.evaluation.features.cache import cached_embed
from trilemma.evaluation.features.extractor import Extractor, load_extractor
from trilemma.evaluation.metrics.authenticity import authenticity
from trilemma.evaluation.metrics.ct import data_copying
from trilemma.evaluation.metrics.frechet import frechet_distance
from trilemma.evaluation.metrics.histogram import class_counts, class_kl
from trilemma.evaluation.metrics.kid import kid
from trilemma.evaluation.metrics.prdc import prdc
from trilemma.evaluation.samples import evaluate_samples

NUM_COMPARED = 2000
Comparison = tuple[str, str, float, float]  # what, whose, ours, theirs


class AsModule(nn.Module):
    """An extractor in the form that torchmetrics takes."""

    num_features = 128

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extract = extractor.features

    def forward(self, images: Tensor) -> Tensor:
        return self.extract(images).double()


def comparisons(real_images: Tensor, fake_images: Tensor, extractor: Extractor) -> Iterator[Comparison]:
    """Every metric that someone else has written too."""
    seen_real, seen_fake = extractor.embed(real_images), extractor.embed(fake_images)
    real, fake = seen_real.features, seen_fake.features
    x, y = fake.double().numpy(), real.double().numpy()

    frechet = frechet_distance(fake, real)
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s @ t)
    by_root = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root.real)
    yield "FD", "scipy sqrtm", frechet, float(by_root)
    for what, metric, ours in (
        ("FD", FrechetInceptionDistance(AsModule(extractor)), frechet),
        ("KID", KernelInceptionDistance(AsModule(extractor), subsets=1, subset_size=len(real)), kid(fake, real).value),
    ):
        metric.update(real_images, real=True)
        metric.update(fake_images, real=False)
        theirs = metric.compute()
        yield what, "torchmetrics", ours, float(theirs[0] if isinstance(theirs, tuple) else theirs)
    found = vars(prdc(real, fake, nearest_k=5))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints the sizes
        theirs_all = prdc_package.compute_prdc(y, x, 5)
    for name, value in theirs_all.items():
        yield name, "prdc", found[name], float(value)
    among = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(y)
    distances, nearest = (a[:, 0] for a in among.kneighbors(x, n_neighbors=1))
    spacing = among.kneighbors(y)[0][:, 1]
    share = float((distances > spacing[nearest]).mean())
    yield "authenticity", "scikit-learn neighbours", authenticity(real, fake), share
    half = len(real) // 2
    among = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(y[:half])
    a, b = (among.kneighbors(z)[0][:, 0] for z in (x, y[half:]))
    p = scipy.stats.mannwhitneyu(a, b, alternative="less", method="asymptotic", use_continuity=False).pvalue
    ours = data_copying(real[:half], real[half:], fake, num_cells=1, seed=0).score
    yield "C_T, one cell", "scipy mannwhitneyu", ours, float(scipy.stats.norm.ppf(p))
    assert seen_real.logits is not None
    assert seen_fake.logits is not None
    counts = [class_counts(seen.logits.argmax(1), 10) for seen in (seen_fake, seen_real)]
    theirs = scipy.stats.entropy(*(c.numpy() + 0.5 for c in counts))
    yield "class KL", "scipy entropy", class_kl(*counts), float(theirs)


def timed(real: Split, held_out: Split, extractor: Extractor, runs: int) -> list[float]:
    """Seconds of `evaluate_samples`, run by run."""
    samples = held_out.images[:].roll(1, dims=3)
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        for split in (real, held_out):
            cached_embed(extractor, split.images, cache)
        for _ in range(runs):
            begin = time.perf_counter()
            evaluate_samples(
                samples, held_out.labels, real=real, held_out=held_out, extractor=extractor, cache_dir=cache
            )
            seconds.append(time.perf_counter() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the MNIST files")
    parser.add_argument("--runs", type=int, default=3, help="whole evaluations to time; 0 for none")
    options = parser.parse_args()
    # Features that are zero for all digits leave the covariance singular, which scipy says and our root does not mind.
    warnings.filterwarnings("ignore", category=scipy.linalg.LinAlgWarning)
    warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
    one_job = sklearn.metrics.pairwise_distances
    # The prdc package asks for eight processes whatever the machine has.
    sklearn.metrics.pairwise_distances = lambda x, y, metric, n_jobs: one_job(x, y, metric=metric)

    data = MNIST(root=options.root, val_size=1, download=False)
    data.setup()
    train, val, test = (data.split(name) for name in ("train", "val", "test"))
    images = torch.cat([train.images[:], val.images[:]])
    real = Split(images=images, labels=None, captions=None, index=torch.arange(len(images)))
    extractor = load_extractor("mnist")
    print(f"{extractor.name}, {NUM_COMPARED} test images moved by a pixel against as many training images\n")
    print("| what | beside | ours | theirs | relative difference |\n|---|---|---|---|---|")
    moved = test.images[:NUM_COMPARED].roll(1, dims=3)
    for what, whose, ours, theirs in comparisons(images[:NUM_COMPARED], moved, extractor):
        difference = abs(ours - theirs) / abs(theirs) if theirs else abs(ours)
        print(f"| {what} | {whose} | {ours:.8g} | {theirs:.8g} | {difference:.1e} |")
    if options.runs:
        seconds = timed(real, test, extractor, options.runs)
        print(
            f"\n{len(test)} images against {len(images)}, all metrics over features: median "
            f"{statistics.median(seconds):.1f} s of {', '.join(f'{s:.1f}' for s in seconds)}; {torch.get_num_threads()} threads"
        )


if __name__ == "__main__":
    main()
