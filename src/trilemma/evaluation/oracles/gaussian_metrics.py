"""The metrics over features, on Gaussians and on sets whose scores are known."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from trilemma.evaluation.metrics.authenticity import authenticity
from trilemma.evaluation.metrics.ct import data_copying
from trilemma.evaluation.metrics.fd_infinity import fd_infinity
from trilemma.evaluation.metrics.frechet import Moments, frechet_distance
from trilemma.evaluation.metrics.histogram import class_counts, class_kl, class_total_variation, modes_hit
from trilemma.evaluation.metrics.kid import kid
from trilemma.evaluation.metrics.prdc import prdc
from trilemma.evaluation.oracles.base import Check, Oracle, Z, mean_check
from trilemma.evaluation.oracles.gaussians import Gaussian, Stretch, random_gaussian, random_stretch, squared_mmd

K = 5
ROUNDING = 1e-8  # of a distance, relative to its size
FAR = 1000.0


class GaussianMetrics(Oracle):
    """Frechet distance, KID, precision to coverage, copying and class frequencies against closed forms.

    Args:
        dim: Dimensions d of the features.
        num: Features in a set.
        num_sets: Independent sets where the answer is the mean of a distribution.

    Raises:
        ValueError: If there are too few for a check to say anything.
    """

    def __init__(self, *, dim: int = 8, num: int = 200, num_sets: int = 100) -> None:
        if dim < 2 or num < max(10 * dim, 50) or num_sets < 10:
            raise ValueError(f"dim={dim}, num={num}, num_sets={num_sets}: need dim >= 2, num >= 10 dim and 50, 10 sets")
        self.dim, self.num, self.num_sets = dim, num, num_sets

    def run(self, seed: int) -> list[Check]:
        """All checks, about a second for the default sizes."""
        generator = torch.Generator().manual_seed(seed)
        p, stretch = random_gaussian(self.dim, generator), random_stretch(self.dim, generator)
        return [
            *self._frechet(p, stretch, generator),
            *self._kernel(p, stretch.distribution(p), generator),
            *self._neighbours(p, generator),
            *self._copies(p, generator),
            *self._classes(),
        ]

    def _frechet(self, p: Gaussian, stretch: Stretch, generator: torch.Generator) -> Iterator[Check]:
        q = stretch.distribution(p)
        known = stretch.squared_distance(p)
        reference = Moments(q.mean, q.cov, self.num)
        own = Moments(p.mean, p.cov, self.num)
        found = frechet_distance(own, reference)
        yield Check("FD of two Gaussians", known, found, ROUNDING * known)
        # The covariances of a set and of its image are as A S A, whatever the set: the transport is known for these too.
        for name, num in (("N > d", self.num), ("N < d", self.dim // 2 + 1)):
            x = p.sample(num, generator)
            empirical = Gaussian(x.mean(dim=0), x.mT.cov())
            known_here = stretch.squared_distance(empirical)
            # Roots of eigenvalues that should be 0 are as large as the root of rounding.
            allowed = ROUNDING * known_here if num > self.dim else 1e-5 * known_here
            yield Check(f"FD of a set and its image, {name}", known_here, frechet_distance(x, stretch.of(x)), allowed)
        x = p.sample(self.num, generator)
        total = float(x.mT.cov().trace())
        yield Check("FD of a set to itself", 0.0, frechet_distance(x, x), ROUNDING * total)
        collapsed = x.mean(dim=0).expand(self.num, -1)
        yield Check("FD of a collapsed set", total, frechet_distance(x, collapsed), ROUNDING * total)
        # Against its own distribution a set of N is tr(S) (d + 5) / 4N away in the mean, to first order and for equal variances. What
        # the extrapolation leaves of that is of the next order; a quarter is allowed.
        bias = float(p.cov.trace()) * (self.dim + 5) / (4 * self.num)
        for name, distribution, known_here in (("different", reference, known), ("equal", own, 0.0)):
            sets = (p.sample(self.num, generator) for _ in range(self.num_sets))
            limits = [fd_infinity(x, distribution, seed=s, with_stderr=False).value for s, x in enumerate(sets)]
            yield mean_check(f"FD for infinite N, {name} distributions", known_here, limits, exact_within=bias / 4)

    def _kernel(self, p: Gaussian, q: Gaussian, generator: torch.Generator) -> Iterator[Check]:
        for name, other, known in (("different", q, squared_mmd(p, q)), ("equal", p, 0.0)):
            found = [
                kid(p.sample(self.num, generator), other.sample(self.num, generator)) for _ in range(self.num_sets)
            ]
            values = torch.tensor([k.value for k in found], dtype=torch.float64)
            yield mean_check(f"KID of {name} Gaussians", known, values.tolist())
            if known:  # of equal distributions the distance is no normal variable, and its error is rounded up
                stated = torch.tensor([k.stderr for k in found], dtype=torch.float64).square().mean().sqrt()
                # The deviation of n normal values is known to 1 / sqrt(2n); twice that for these.
                allowed = Z * math.sqrt(2 / self.num_sets)
                yield Check("spread of KID over its standard error", 1.0, float(values.std() / stated), allowed)
        x = p.sample(self.num, generator)
        row = (x @ x.mT / self.dim + 1) ** 3
        # Two equal sets differ by what the unbiased estimate leaves out: the diagonal.
        known = 2 * float((row.sum() - row.trace()) / (self.num * (self.num - 1)) - row.mean())
        yield Check("KID of a set to itself", known, kid(x, x).value, ROUNDING * float(row.mean()))

    def _neighbours(self, p: Gaussian, generator: torch.Generator) -> Iterator[Check]:
        x = p.sample(self.num, generator)
        far = x + FAR
        one = x[:1].expand(self.num, -1)
        cases = (("identical sets", x.flip(0), 1.0), ("disjoint sets", far, 0.0))
        for name, fake, known in cases:
            for metric, value in vars(prdc(x, fake, nearest_k=K)).items():
                yield Check(f"{metric} of {name}", known, value, 0.0)
        collapsed = prdc(x, one, nearest_k=K)
        yield Check("precision of a set collapsed on one point", 1.0, collapsed.precision, 0.0)
        yield Check("recall of a set collapsed on one point", 0.0, collapsed.recall, 0.0)
        found = [
            prdc(p.sample(self.num, generator), p.sample(self.num, generator), nearest_k=K)
            for _ in range(self.num_sets)
        ]
        # A fake is as likely as any real point to be among a real point's K nearest: ranks alone decide.
        yield mean_check("density of equal distributions", 1.0, [f.density for f in found])
        n = self.num
        missed = math.prod((n - 1 - i) / (2 * n - 1 - i) for i in range(K))
        yield mean_check("coverage of equal distributions", 1 - missed, [f.coverage for f in found])

    def _copies(self, p: Gaussian, generator: torch.Generator) -> Iterator[Check]:
        train, held_out = p.sample(self.num, generator), p.sample(self.num, generator)
        yield Check("authenticity of copies", 0.0, authenticity(train, train.flip(0)), 0.0)
        yield Check("authenticity of far-off points", 1.0, authenticity(train, train + FAR), 0.0)
        lines = [
            authenticity(*(torch.randn(self.num, 1, generator=generator, dtype=torch.float64) for _ in range(2)))
            for _ in range(self.num_sets)
        ]
        # Two thirds of the points of a line are nearest neighbours of each other in pairs; edges matter as 1 / N.
        yield mean_check("authenticity of new points on a line", 1 / 3, lines, exact_within=1 / self.num)
        n = self.num
        # All copies are at distance 0, below every held-out point: U = 0, and one tie of n.
        lowest = -n * n / 2 / math.sqrt(n * n / 12 * (2 * n + 1 - (n**3 - n) / (2 * n * (2 * n - 1))))
        copied = data_copying(train, held_out, train.flip(0), num_cells=1, seed=0).score
        yield Check("C_T of copies", lowest, copied, 1e-9 * abs(lowest))
        # No ties and U = n^2: every far-off point is farther than every held-out one.
        highest = n * n / 2 / math.sqrt(n * n / 12 * (2 * n + 1))
        strange = data_copying(train, held_out, p.sample(n, generator) + FAR, num_cells=1, seed=0).score
        yield Check("C_T of far-off points", highest, strange, 1e-9 * highest)
        null = [
            data_copying(train, p.sample(n, generator), p.sample(n, generator), num_cells=1, seed=0).score
            for _ in range(self.num_sets)
        ]
        yield mean_check("C_T of new points", 0.0, null)

    def _classes(self) -> Iterator[Check]:
        num_classes = 10
        even = class_counts(torch.arange(num_classes).repeat(self.num), num_classes)
        one = class_counts(torch.zeros(num_classes * self.num, dtype=torch.int64), num_classes)
        yield Check("modes hit by a collapsed set", 1.0, float(modes_hit(one)), 0.0)
        yield Check("class KL of equal frequencies", 0.0, class_kl(even, even), 0.0)
        yield Check("class KL of a collapsed set", math.log(num_classes), class_kl(one, even, smoothing=0.0), 1e-12)
        yield Check("class TV of a collapsed set", 1 - 1 / num_classes, class_total_variation(one, even), 1e-12)
