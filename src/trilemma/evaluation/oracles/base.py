"""What an oracle is: something that runs the real code and holds what it finds against what is known."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

Z = 4.5  # standard errors allowed to a mean of draws: one check in 150,000 fails by chance


@dataclass(frozen=True)
class Check:
    """One number held against its known value.

    Attributes:
        name: What is checked, for people.
        expected: What is known.
        found: What came out.
        tolerance: The largest difference allowed; 0 where the answer must be exact.
    """

    name: str
    expected: float
    found: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether what was found is as close as allowed; no NaN ever is."""
        return abs(self.found - self.expected) <= self.tolerance


class Oracle(ABC):
    """A set of checks. Its constructor takes plain settings, so that a configuration can name it."""

    @abstractmethod
    def run(self, seed: int) -> list[Check]:
        """Run the checks; equal seeds draw equal numbers."""


def mean_check(name: str, expected: float, draws: Sequence[float], *, exact_within: float = 0.0) -> Check:
    """Check the mean of independent draws, with `Z` of its standard errors allowed.

    Args:
        name: What is checked.
        expected: The mean of the distribution of the draws.
        draws: Two at least.
        exact_within: Added to what is allowed: rounding, or a known remainder of `expected`.
    """
    mean = math.fsum(draws) / len(draws)
    variance = math.fsum((x - mean) ** 2 for x in draws) / (len(draws) - 1)
    return Check(name, expected, mean, Z * math.sqrt(variance / len(draws)) + exact_within)
