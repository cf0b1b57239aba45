"""The space of a search, from overrides: `a=1,2`, `a=interval(0,1)`, `a=tag(log,interval(1e-4,1e-2))`, `a=range(1,9)`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from trilemma.errors import UserError


@dataclass(frozen=True)
class SearchSpace:
    """The varied settings of a search, and the fixed ones.

    Attributes:
        varied: Distributions by key.
        fixed: The other overrides, as typed.
    """

    varied: dict[str, BaseDistribution]
    fixed: tuple[str, ...]

    @staticmethod
    def of(overrides: Sequence[Override]) -> SearchSpace:
        """Parse the search space of overrides.

        Raises:
            UserError: If nothing is varied.
        """
        varied = {one.get_key_element(): _distribution(one) for one in overrides if one.is_sweep_override()}
        if not varied:
            raise UserError(
                "hydra/sweeper=optuna: nothing is varied; give intervals or choices, as in "
                "'optimizer.lr=tag(log,interval(1e-4,1e-2))' seed=1,2"
            )
        return SearchSpace(varied, tuple(one.input_line or "" for one in overrides if not one.is_sweep_override()))

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Build the overrides of a point, varied settings first."""
        return [f"{key}={_typed(params[key])}" for key in self.varied] + list(self.fixed)

    def study(self, experiment: str) -> str:
        """Name the study; a different search has a different name."""
        keys = ("run.", "paths.", "logger", "num_threads=")  # change where and how a point runs, not what it is
        content = sorted([*self.varied, *(one for one in self.fixed if not one.startswith(keys))])
        return f"{experiment}-{hashlib.sha256(' '.join(content).encode()).hexdigest()[:6]}"


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        start: Any
        end: Any
        start, end, log = value.start, value.end, "log" in value.tags
        if all(isinstance(one, int) for one in (start, end)):
            return IntDistribution(start, end, log=log)
        return FloatDistribution(start, end, log=log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        found: list[Any] = list(override.sweep_iterator())
        if all(isinstance(one, int) for one in found):
            return IntDistribution(found[0], found[-1], step=int(value.step or 1))
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _typed(value: Any) -> str:
    """Format a value as it would be typed; of a number, the shortest form."""
    return value if isinstance(value, str) else repr(value)
