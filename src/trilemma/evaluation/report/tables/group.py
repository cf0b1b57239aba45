"""Rows that differ in seeds alone, taken as repetitions of one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trilemma.evaluation.report.row import Entry, Row, finite
from trilemma.evaluation.report.tables.quantities import Number
from trilemma.evaluation.report.tables.settings import describe, num_steps, settings_key
from trilemma.evaluation.report.tables.spread import Spread, around_95, spread


@dataclass(frozen=True)
class Group:
    """Repetitions of one setting.

    Where checkpoints differ, seeds of training are what is repeated: the rows of one checkpoint count as their mean.
    Of a single checkpoint, its seeds of sampling are.

    Attributes:
        entry: Name of the model.
        rows: At least one.
    """

    entry: str
    rows: tuple[Row, ...]

    @property
    def steps(self) -> int | None:
        """Steps of the sampler."""
        return num_steps(self.rows[0])

    @property
    def settings(self) -> str:
        """Sampler and guidance in words."""
        return describe(self.rows[0])

    @property
    def manner(self) -> str:
        """How samples were drawn, in words; empty for a model that has no choice."""
        steps = "" if self.steps is None else f"{self.steps} step{'s' if self.steps != 1 else ''}"
        return ", ".join(part for part in (steps, self.settings) if part)

    @property
    def title(self) -> str:
        """Model and manner."""
        return f"{self.entry} ({self.manner})" if self.manner else self.entry

    def caption(self, row: Row) -> str:
        """Manner and seed."""
        seed = f"seed {row.protocol.get('seed')}"
        return f"{self.manner}, {seed}" if self.manner else seed

    @property
    def num_repetitions(self) -> int:
        """Number of checkpoints; of a single one, of its rows."""
        return self._num_checkpoints if self._num_checkpoints > 1 else len(self.rows)

    @property
    def repetitions(self) -> str:
        """What was repeated how often; empty for a single row."""
        if len(self.rows) == 1:
            return ""
        return f"{self.num_repetitions} {'training runs' if self._num_checkpoints > 1 else 'sample seeds'}"

    @property
    def _num_checkpoints(self) -> int:
        return len({row.protocol.get("checkpoint") for row in self.rows})

    def first(self, number: Number) -> float | None:
        """A value that may not be finite; None where no row has one."""
        return next((value for row in self.rows if (value := number(row)) is not None), None)

    def spread(self, number: Number) -> Spread | None:
        """Of the finite values; None where no row has one."""
        by_checkpoint: dict[object, list[float]] = {}
        for row in self.rows:
            value = number(row)
            if value is not None and finite(value):
                by_checkpoint.setdefault(row.protocol.get("checkpoint"), []).append(value)
        if not by_checkpoint:
            return None
        if len(by_checkpoint) == 1:
            return spread(next(iter(by_checkpoint.values())))
        return spread([spread(values).mean for values in by_checkpoint.values()])

    def interval(self, number: Number, stderr: Number) -> tuple[float, float] | None:
        """What a plot shows as a bar.

        Three repetitions or more: the 95 % interval of their mean. Two: from one to the other. One: 1.96 of the
        standard errors that the row states, or None where it states none.
        """
        found = self.spread(number)
        if found is None:
            return None
        if found.num == 1:
            errors = [e for row in self.rows if finite(number(row)) and (e := stderr(row)) is not None and finite(e)]
            return around_95(found.mean, errors[0]) if len(errors) == 1 else None
        if found.interval is None and found.sd is not None:  # of two values, sd is their distance over sqrt 2
            half = found.sd / 2**0.5
            return found.mean - half, found.mean + half
        return found.interval


def groups_of(entry: Entry) -> list[Group]:
    """The settings of an entry, those of one kind side by side, by rising steps."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in entry.rows:
        found.setdefault((settings_key(row, with_steps=False), settings_key(row)), []).append(row)
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    ordered = sorted(found.items(), key=lambda item: (kinds.index(item[0][0]), num_steps(item[1][0]) or 0))
    return [Group(entry.name, tuple(rows)) for _, rows in ordered]


def all_groups(entries: Sequence[Entry]) -> list[Group]:
    """Of all entries, in their order."""
    return [group for entry in entries for group in groups_of(entry)]
